"""The methods of pruning by their names, at random or by a score, and ``prune``, which applies one to a network."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from dctps_jax.arguments import check_shapes, words
from dctps_jax.errors import UserError, did_you_mean
from dctps_jax.prunable import NO_LAYERS, prunable_layers
from dctps_jax.pruning.allocation import ALLOCATIONS, allocate_counts, report_empty_layers
from dctps_jax.pruning.batches import Batches
from dctps_jax.pruning.by_score import SCORE_OPTIONS, score_masks
from dctps_jax.pruning.layer_rules import Shapes, check_density, layer_rules
from dctps_jax.pruning.masks import get_masks, mask_of_layer, mask_of_support
from dctps_jax.pruning.pattern import parse_pattern, random_pattern_masks
from dctps_jax.pruning.random import random_supports_within
from dctps_jax.pruning.scores import SCORES
from dctps_jax.seeds import as_key


def prune(
    model: nnx.Module,
    method: str,
    density: float,
    *,
    key: jax.Array | int,
    batch: Batches | None = None,
    dense_layers: Iterable[str] = (),
    layer_densities: Mapping[str, float] | Iterable[tuple[str, float]] = (),
    pattern: str = "",
    **options: Any,
) -> dict[str, np.ndarray]:
    """Choose the weights that stay. Return a boolean mask for each prunable layer, by dotted path.

    The model is unchanged. If it has masks, only weights that they keep are chosen; ``density`` is that of all weights.
    ``method`` is an allocation or a score. An allocation (a key of :data:`ALLOCATIONS`) says how many weights each
    layer keeps, and ``key`` places them at random. A score (a key of :data:`SCORES`) keeps the
    ``round(density · total)`` weights with the highest scores.

    Layers that ``nnx.vmap`` has stacked each get a mask, ``[layers, *kernel_shape]`` together, and all of them keep
    equally many weights (see ``stacks`` of :func:`allocate`). A score takes these options:

    - ``batch``: images (or tokens) as the network takes them and labels, the same at every step. Or a function that
      returns a list of such pairs for a step, over which gradients are averaged.
    - ``num_steps``: 1 is one shot; 0 takes the method's own number, ``SCORES[method].default_steps``.
    - ``schedule``: a key of :data:`~dctps_jax.pruning.schedules.SCHEDULES`, "exp" by default.
    - ``loss``: a key of :data:`~dctps_jax.losses.LOSSES`, "cross_entropy" by default; its labels are integers, one an
      image or one for each position of the logits, or for "cross_entropy" the probabilities of the classes. Or a
      function of the network's outputs and the labels, which may then be any array, e.g. float targets. It returns one
      number or one for each example, whose mean is the loss; no temperature divides its outputs.
    - ``scope``: "global" compares the weights of all layers. "layer" gives every layer the same density.
    - ``allocation``: every layer keeps the count of this allocation, and the scores say which weights.

    With an offset "magnitude" scores the weights of K = α·D + S, so that it keeps those where D is large;
    "magnitude_sparse" scores S alone, which is zero before training. Unless ``loss`` is a function, the network has to
    return logits alone, no ``(logits, aux)``. ``key`` may be a seed.

    Random positions depend on ``key`` and on the order of the layers. ``nnx.clone`` and ``nnx.merge`` sort the layers
    of a network by their names, unless :func:`~dctps_jax.convert` made it.

    ``dense_layers``, ``layer_densities`` and ``pattern`` are those of :func:`allocate`. With a pattern "N:M" a score
    chooses the N of every M inputs, and at each of several steps as many of M as the schedule says.

    Raises :class:`~dctps_jax.errors.UserError` for an unknown method or option, a batch that the network cannot take, a
    density that keeps nothing, scores that are not finite, scores of which the lowest that would be kept is exactly 0,
    and a pattern that does not fit.
    """
    layers = prunable_layers(model)
    check_density(density, "density")
    density = float(density)  # not in its own type, e.g. float16, which counts up to 2048 only
    key = as_key(key)
    check_method(method, options)
    shapes = {path: layer.kernel_shape for path, layer in layers.items()}
    stacks = {path: layer.stack for path, layer in layers.items() if layer.stack}
    rules = layer_rules(dense_layers, layer_densities, pattern, stacks)
    size = sum(rules.sizes(shapes).values())
    if size == 0:
        raise UserError(NO_LAYERS)
    if round(density * size) == 0:
        raise UserError(f"density {density:g} keeps none of {size} weights; choose at least {1 / size:.2g}")
    if method in SCORES:
        masks = score_masks(model, method, density, rules, key=key, batch=batch, **options)
        report_empty_layers({path: int(mask.sum()) for path, mask in masks.items()}, method, density)
        return masks
    counts = allocate_counts(shapes, density, method, rules)
    report_empty_layers(counts, method, density)
    if found := parse_pattern(pattern, density, method):
        return random_pattern_masks(key, get_masks(model), found, rules.fixed_counts(shapes))
    masks = {path: mask_of_layer(layer) for path, layer in layers.items() if not layer.is_dense}
    supports = random_supports_within(masks, key, shapes, counts, stacks)
    return {path: mask_of_support(support, shapes[path]) for path, support in supports.items()}


def method_names() -> tuple[str, ...]:
    """Return the methods of :func:`prune`, entries that a user has added to the tables included."""
    return (*ALLOCATIONS, *SCORES)


def check_method(method: Any, options: Iterable[str], others: Iterable[str] = ()) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` for a method of :func:`prune` or an option that does not exist.

    ``others`` are the caller's other arguments, one of which may be meant.
    """
    if not isinstance(method, str) or method not in method_names():
        hint = did_you_mean(method, method_names()) if isinstance(method, str) else ""
        raise UserError(
            f"there is no pruning method {words(method)}{hint}; the methods are: {', '.join(method_names())}"
        )
    known = ("batch", *SCORE_OPTIONS) if method in SCORES else ()
    for option in options:
        if option not in known:
            has = f"its options are: {', '.join(known)}" if known else "random methods have none"
            raise UserError(f"{method} has no option {option!r}{did_you_mean(option, (*known, *others))}; {has}")


def random_pattern_supports(
    key: jax.Array | int,
    shapes: Shapes,
    pattern: str,
    density: float,
    *,
    dense_layers: Iterable[str] = (),
    layer_densities: Mapping[str, float] | Iterable[tuple[str, float]] = (),
) -> dict[str, np.ndarray]:
    """Return the positions, ascending, that :func:`prune` with "uniform" and a ``pattern`` keeps of each kernel.

    Raises :class:`~dctps_jax.errors.UserError` for no pattern, and as :func:`prune` does.
    """
    key = as_key(key)
    check_shapes("shapes", shapes)
    check_density(density, "density")
    found = parse_pattern(pattern, density)
    if found is None:
        raise UserError('pattern is \'\'; it must be "N:M" with 0 < N < M, e.g. "2:4"')
    fixed = layer_rules(dense_layers, layer_densities).fixed_counts(shapes)
    masks = random_pattern_masks(key, {path: np.ones(shape, bool) for path, shape in shapes.items()}, found, fixed)
    return {path: np.flatnonzero(mask) for path, mask in masks.items()}
