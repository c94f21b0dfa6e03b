"""One-shot and iterative pruning by scores: how many weights stay after each step, and the loop over the steps."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np
from flax import nnx

from dctps_jax.errors import UserError
from dctps_jax.layers import prunable_layers
from dctps_jax.pruning.allocation import allocate_counts, fixed_counts
from dctps_jax.pruning.scores import LOSSES, Batch, gradient_scores, scored, synflow_scores
from dctps_jax.pruning.selection import Masks, top_k_global, top_k_per_layer

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
    between are rounded down, as the authors of FORCE do.
    """
    if schedule == "exp":
        fractions = [math.exp((step + 1) * math.log(density) / num_steps) for step in range(num_steps)]
    else:
        fractions = [1 - (step + 1) * (1 - density) / num_steps for step in range(num_steps)]
    return [*(int(total * fraction) for fraction in fractions[:-1]), round(density * total)]


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
    if schedule not in SCHEDULES or scope not in SCOPES or loss not in LOSSES or num_steps < 0:
        raise UserError(
            f"schedule is {schedule!r} (one of {', '.join(SCHEDULES)}), scope {scope!r} (one of {', '.join(SCOPES)}), loss "
            f"{loss!r} (one of {', '.join(LOSSES)}), num_steps {num_steps} (at least 1, or 0 for the method's own); one of "
            "them cannot be"
        )
    num_steps = num_steps or DEFAULT_STEPS[method]
    layers = prunable_layers(model)
    shapes = {path: layer.kernel_shape for path, layer in layers.items()}
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    total = sum(sizes.values())
    fixed = fixed_counts(sizes, dense_layers, layer_densities)
    allocation = allocation or ("uniform" if scope == "layer" else None)

    def select(scores: Mapping[str, np.ndarray], count: int, last: bool) -> Masks:
        if allocation is not None:
            counts = allocate_counts(
                shapes, count / total, allocation, dense_layers=dense_layers, layer_densities=layer_densities
            )
            return top_k_per_layer(scores, counts, allow_zero=not last)
        free = {path: score for path, score in scores.items() if path not in fixed}
        remaining = count - sum(fixed.values())
        if not 0 <= remaining <= sum(sizes[path] for path in free):
            raise UserError(
                f"density {density} keeps {count} weights, but the layers named in dense_layers and layer_densities take "
                f"{sum(fixed.values())}; change the density or those layers"
            )
        chosen = top_k_global(free, remaining, allow_zero=not last) if free else {}
        chosen |= top_k_per_layer({path: scores[path] for path in fixed}, fixed, allow_zero=not last)
        return {path: chosen[path] for path in scores}

    score = score_function(model, method, key, batch, loss)
    counts = keep_counts(total, density, num_steps, schedule)
    # TPUs would otherwise multiply in bfloat16, which changes the order of the scores.
    with jax.default_matmul_precision("float32"):
        return thin_out(score, select, counts, shapes, regrow=method == "force")


def thin_out(
    score: Callable[[Masks, int], Mapping[str, np.ndarray]],
    select: Callable[[Mapping[str, np.ndarray], int, bool], Masks],
    counts: Sequence[int],
    shapes: Mapping[str, Sequence[int]],
    *,
    regrow: bool,
) -> Masks:
    """Score and select once for each of ``counts``: ``score(masks, step)``, ``select(scores, count, last)``.

    With ``regrow`` (FORCE) a weight that was removed may come back, since its score is of the dense network's weight;
    otherwise its score falls below all others.
    """
    masks = {path: np.ones(shape, bool) for path, shape in shapes.items()}
    for step, count in enumerate(counts):
        scores = score(masks, step)
        if not regrow and step > 0:
            lowest = min(float(values.min()) for values in scores.values())
            floor = lowest - max(1.0, abs(lowest))
            scores = {path: np.where(masks[path], values, floor) for path, values in scores.items()}
        masks = select(scores, count, step == len(counts) - 1)
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
    batches = batch if callable(batch) else lambda step: [batch]
    if method == "synflow":
        synflow = synflow_scores(model, tuple(batches(0)[0][0].shape[1:]))
        return lambda masks, step: synflow({path: jax.numpy.asarray(mask) for path, mask in masks.items()})
    formula, train, _ = GRADIENT_METHODS[method]
    gradient = gradient_scores(scored(model, train=train), formula, loss)
    return lambda masks, step: gradient(
        {path: jax.numpy.asarray(mask) for path, mask in masks.items()}, list(batches(step))
    )
