"""One-shot and iterative pruning by scores: the loop over the steps."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dctps_jax.errors import UserError
from dctps_jax.losses import LOSSES
from dctps_jax.prunable import prunable_layers
from dctps_jax.pruning.allocation import allocate_counts, fixed_counts
from dctps_jax.pruning.batches import Batch, Batches, CheckedBatches
from dctps_jax.pruning.masks import get_masks
from dctps_jax.pruning.random import check_room
from dctps_jax.pruning.schedules import SCHEDULES, keep_counts
from dctps_jax.pruning.scored_network import ScoredNetwork
from dctps_jax.pruning.scores import SCORES
from dctps_jax.pruning.selection import Masks, equal_in_stacks, top_k_global

SCOPES = ("global", "layer")


def score_masks(
    model: nnx.Module,
    method: str,
    density: float,
    *,
    key: jax.Array,
    batch: Batches | None,
    num_steps: int = 0,
    schedule: str = "exp",
    loss: str = "cross_entropy",
    scope: str = "global",
    allocation: str | None = None,
    dense_layers: Iterable[str] = (),
    layer_densities: Mapping[str, float] | Iterable[tuple[str, float]] = (),
) -> Masks:
    """Return the masks that a score method chooses; see :func:`dctps_jax.pruning.prune` for the arguments."""
    _check_options(num_steps, schedule, loss, scope)
    num_steps = num_steps or SCORES[method].default_steps
    prunable = prunable_layers(model)
    shapes = {path: layer.kernel_shape for path, layer in prunable.items()}
    stacks = {path: layer.stack for path, layer in prunable.items() if layer.stack}
    layers = {path: math.prod(layer.stack) for path, layer in prunable.items()}
    sizes = {path: layers[path] * math.prod(shape) for path, shape in shapes.items()}
    allocation = allocation or ("uniform" if scope == "layer" else None)
    final = allocate_counts(
        shapes,
        density,
        allocation or "uniform",
        dense_layers=dense_layers,
        layer_densities=layer_densities,
        stacks=stacks,
    )
    # Weights compete within a group. A layer whose count is given is a group; all other layers are one group.
    fixed = final if allocation else fixed_counts(sizes, dense_layers, layer_densities, layers)
    free = [path for path in shapes if path not in fixed]
    groups: list[tuple[list[str], list[int]]] = []
    for paths in ([free] if free else []) + [[path] for path in fixed]:
        total = sum(sizes[path] for path in paths)
        group_density = density if not fixed else sum(final[path] for path in paths) / total
        groups.append((paths, keep_counts(total, group_density, num_steps, schedule, SCORES[method].rounds)))

    def select(scores: Mapping[str, np.ndarray], step: int, allowed: Masks) -> Masks:
        is_last = step == num_steps - 1
        masks: Masks = {}
        for paths, counts in groups:
            chosen = top_k_global({path: scores[path] for path in paths}, counts[step], allow_zero=not is_last)
            masks |= equal_in_stacks(scores, chosen, allowed, stacks) if stacks else chosen
        return {path: masks[path] for path in scores}

    within = get_masks(model)
    for paths, counts in groups:
        check_room(sum(int(within[path].sum()) for path in paths), counts[-1], ", ".join(paths))
    score = score_function(model, method, key, batch, loss)
    # TPUs would otherwise multiply in bfloat16, which changes the order of the scores.
    with jax.default_matmul_precision("float32"):
        masks = thin_out(score, select, num_steps, within, regrow=SCORES[method].regrow)
    for paths, counts in groups:  # what a stack cannot keep in equal numbers is missing
        kept = sum(int(masks[path].sum()) for path in paths)
        check_room(kept + max(layers[path] for path in paths) - 1, counts[-1], ", ".join(paths))
    return masks


def _check_options(num_steps: Any, schedule: str, loss: str, scope: str) -> None:
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 0:
        raise UserError(
            f"num_steps is {num_steps!r}; it must be a whole number of at least 1, or 0 for the method's own"
        )
    for name, value, choices in (("schedule", schedule, SCHEDULES), ("loss", loss, LOSSES), ("scope", scope, SCOPES)):
        if value not in choices:
            raise UserError(f"{name} is {value!r}; it must be one of: {', '.join(choices)}")


def thin_out(
    score: Callable[[Masks, int], Mapping[str, np.ndarray]],
    select: Callable[[Mapping[str, np.ndarray], int, Masks], Masks],
    num_steps: int,
    within: Masks,
    *,
    regrow: bool,
) -> Masks:
    """Compute scores and select weights ``num_steps`` times.

    A step is ``score(masks, step)``, then ``select(scores, step, allowed)``, where ``allowed`` are masks of the weights
    that may be chosen, all of them of the masks ``within``. With ``regrow`` a weight that was removed may return. The
    score of every other weight is set below all scores.
    """
    masks = within
    for step in range(num_steps):
        scores, allowed = score(masks, step), within if regrow else masks
        if not all(mask.all() for mask in allowed.values()):
            lowest = min(float(values.min()) for values in scores.values())
            floor = lowest - max(1.0, abs(lowest))
            scores = {path: np.where(allowed[path], values, floor) for path, values in scores.items()}
        # A step may keep more weights than are allowed: the counts are of all weights.
        masks = {path: mask & allowed[path] for path, mask in select(scores, step, allowed).items()}
    return masks


def score_function(
    model: nnx.Module, method: str, key: jax.Array, batch: Batches | None, loss: str
) -> Callable[[Masks, int], Mapping[str, np.ndarray]]:
    """Return ``(masks, step) → scores`` for a method, a key of :data:`~dctps_jax.pruning.scores.SCORES`."""
    score = SCORES[method]
    batches_at = _batches_at(model, method, batch)
    network = ScoredNetwork(model, key, loss=loss, temperature=score.temperature or 1.0, train=score.train)

    def scores(masks: Masks, step: int) -> dict[str, np.ndarray]:
        device_masks = {path: jnp.asarray(mask) for path, mask in masks.items()}
        return {path: np.asarray(values) for path, values in score.formula(network, device_masks, batches_at(step))}

    return scores


def _batches_at(model: nnx.Module, method: str, batch: Batches | None) -> Callable[[int], list[Batch]]:
    """Return the batches of each step that the formula of ``method`` takes."""
    needed = SCORES[method].batches
    if needed == "none":
        return lambda step: []
    if batch is None:
        raise UserError(f"{method} scores weights on data: give batch=(images, integer labels)")
    checked_batches = CheckedBatches(model, batch)
    if needed == "each step":
        return checked_batches
    first_batches = checked_batches(0)
    return lambda step: first_batches
