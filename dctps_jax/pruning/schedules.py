"""One-shot and iterative pruning by scores: how many weights stay after each step, and the loop over the steps."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from dctps_jax.errors import UserError
from dctps_jax.layers import prunable_layers
from dctps_jax.npz import first_line
from dctps_jax.pruning.allocation import allocate_counts, fixed_counts
from dctps_jax.pruning.scores import LOSSES, Batch, gradient_scores, scored, synflow_scores
from dctps_jax.pruning.selection import Masks, top_k_global

# Method → (formula of the score, BatchNorm in training mode, steps where none are asked for).
GRADIENT_METHODS = {
    "snip": ("thinned", False, 1),
    "grasp": ("hessian", False, 1),
    "iter_snip": ("thinned", True, 10),
    "grasp_it": ("square", True, 10),
    "force": ("dense", True, 10),
}
DEFAULT_STEPS = {name: steps for name, (_, _, steps) in GRADIENT_METHODS.items()} | {
    "synflow": 100,
    "magnitude": 1,
    "random": 1,
}
SCORE_METHODS = tuple(DEFAULT_STEPS)
SCHEDULES = ("exp", "linear")
SCOPES = ("global", "layer")

Batches = Batch | Callable[[int], Sequence[Batch]]


def keep_counts(total: int, density: float, num_steps: int, schedule: str) -> list[int]:
    """Return how many of ``total`` weights stay after each step; the last count is ``round(density · total)``.

    ``exp`` multiplies the density by the same factor at every step, ``linear`` removes equally many weights. Counts in
    between are rounded down, as the authors of FORCE do, but never below the last.
    """
    last = round(density * total)
    if schedule == "exp":
        factor = math.log(max(density, 0.5 / total)) / num_steps
        fractions = [math.exp((step + 1) * factor) for step in range(num_steps)]
    else:
        fractions = [1 - (step + 1) * (1 - density) / num_steps for step in range(num_steps)]
    return [*(max(int(total * fraction), last) for fraction in fractions[:-1]), last]


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
    num_steps = num_steps or DEFAULT_STEPS[method]
    shapes = {path: layer.kernel_shape for path, layer in prunable_layers(model).items()}
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    allocation = allocation or ("uniform" if scope == "layer" else None)
    final = allocate_counts(
        shapes, density, allocation or "uniform", dense_layers=dense_layers, layer_densities=layer_densities
    )
    # Weights compete within a group: all layers that nothing fixes, or each layer where its count is given.
    fixed = final if allocation else fixed_counts(sizes, dense_layers, layer_densities)
    free = [path for path in shapes if path not in fixed]
    groups: list[tuple[list[str], list[int]]] = []
    for paths in ([free] if free else []) + [[path] for path in fixed]:
        total = sum(sizes[path] for path in paths)
        share = density if not fixed else sum(final[path] for path in paths) / total
        groups.append((paths, keep_counts(total, share, num_steps, schedule)))

    def select(scores: Mapping[str, np.ndarray], step: int) -> Masks:
        last, chosen = step == num_steps - 1, {}
        for paths, counts in groups:
            chosen |= top_k_global({path: scores[path] for path in paths}, counts[step], allow_zero=not last)
        return {path: chosen[path] for path in scores}

    score = score_function(model, method, key, batch, loss)
    # TPUs would otherwise multiply in bfloat16, which changes the order of the scores.
    with jax.default_matmul_precision("float32"):
        return thin_out(score, select, num_steps, shapes, regrow=method == "force")


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
    select: Callable[[Mapping[str, np.ndarray], int], Masks],
    num_steps: int,
    shapes: Mapping[str, Sequence[int]],
    *,
    regrow: bool,
) -> Masks:
    """Score and select ``num_steps`` times: ``score(masks, step)``, ``select(scores, step)``.

    With ``regrow`` (FORCE) a weight that was removed may come back, since its score is of the dense network's weight;
    otherwise its score falls below all others.
    """
    masks = {path: np.ones(shape, bool) for path, shape in shapes.items()}
    for step in range(num_steps):
        scores = score(masks, step)
        if not regrow and step > 0:
            lowest = min(float(values.min()) for values in scores.values())
            floor = lowest - max(1.0, abs(lowest))
            scores = {path: np.where(masks[path], values, floor) for path, values in scores.items()}
        masks = select(scores, step)
    return masks


def score_function(
    model: nnx.Module, method: str, key: jax.Array, batch: Batches | None, loss: str
) -> Callable[[Masks, int], Mapping[str, np.ndarray]]:
    """Return ``(masks, step) → scores`` for a method."""
    if method == "random":
        shapes = {path: layer.kernel_shape for path, layer in prunable_layers(model).items()}
        draws = {
            path: np.asarray(jax.random.uniform(jax.random.fold_in(key, position), shape))
            for position, (path, shape) in enumerate(shapes.items())
        }
        return lambda masks, step: draws
    if method == "magnitude":
        weights = {path: np.abs(np.asarray(weight)) for path, weight in scored(model, train=False).effective.items()}
        return lambda masks, step: weights
    if batch is None:
        raise UserError(f"{method} scores weights on data: give batch=(images, integer labels)")
    batches = checked_batches(model, batch)
    if method == "synflow":
        synflow = synflow_scores(model, tuple(batches(0)[0][0].shape[1:]))
        return lambda masks, step: synflow({path: jax.numpy.asarray(mask) for path, mask in masks.items()})
    formula, train, _ = GRADIENT_METHODS[method]
    gradient = gradient_scores(scored(model, train=train), formula, loss)
    return lambda masks, step: gradient({path: jax.numpy.asarray(mask) for path, mask in masks.items()}, batches(step))


def checked_batches(model: nnx.Module, batch: Batches) -> Callable[[int], list[Batch]]:
    """Return ``step → batches`` as jax arrays; what is no batch for ``model`` is a UserError at the step that sees it."""
    num_classes: list[int] = []

    def check(pair: Any) -> Batch:
        try:
            images, labels = (jax.numpy.asarray(part) for part in pair)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"a batch must be a pair of images and integer labels, got {type(pair).__name__}"
            ) from error
        if images.ndim < 2 or labels.shape != images.shape[:1] or not len(labels):
            raise UserError(
                f"the batch has images of shape {images.shape} and labels of shape {labels.shape}; it needs one integer "
                "label an image, and at least one"
            )
        if not num_classes:
            try:
                graph, state = nnx.split(model)
                logits = jax.eval_shape(lambda state, images: nnx.merge(graph, state)(images), state, images)
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"the network cannot take the batch's images of shape {images.shape}: {first_line(error)}"
                ) from error
            num_classes.append(logits.shape[-1])
        if not jax.numpy.issubdtype(labels.dtype, jax.numpy.integer):
            raise UserError(
                f"the batch's labels are {labels.dtype}; they must be integers from 0 to {num_classes[0] - 1}"
            )
        lowest, highest = int(labels.min()), int(labels.max())
        if lowest < 0 or highest >= num_classes[0]:
            raise UserError(
                f"the batch's labels reach from {lowest} to {highest}; the network knows 0 to {num_classes[0] - 1}"
            )
        return images, labels

    def batches(step: int) -> list[Batch]:
        if not callable(batch):
            return [check(batch)]
        found = batch(step)
        if isinstance(found, tuple):
            raise UserError("the batch function must return a list of (images, labels) pairs, got a tuple")
        checked = [check(pair) for pair in found]
        if not checked:
            raise UserError(f"the batch function returned no batch for step {step}; it must return at least one")
        return checked

    return batches
