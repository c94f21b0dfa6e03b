"""One-shot and iterative pruning by scores: the loop over the steps."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from dctps_jax.arguments import check_choice, is_whole, words
from dctps_jax.errors import UserError
from dctps_jax.losses import LOSSES, Loss
from dctps_jax.prunable import prunable_layers
from dctps_jax.pruning.allocation import ALLOCATIONS
from dctps_jax.pruning.batches import Batch, Batches, CheckedBatches
from dctps_jax.pruning.groups import make_groups
from dctps_jax.pruning.layer_rules import LayerRules
from dctps_jax.pruning.masks import get_masks
from dctps_jax.pruning.schedules import SCHEDULES
from dctps_jax.pruning.scored_network import ScoredNetwork
from dctps_jax.pruning.scores import SCORES
from dctps_jax.pruning.selection import Masks

SCOPES = ("global", "layer")


# What a score takes besides the arguments that it shares with the allocations.
SCORE_OPTIONS = ("num_steps", "schedule", "loss", "scope", "allocation")


def score_masks(
    model: nnx.Module,
    method: str,
    density: float,
    rules: LayerRules,
    *,
    key: jax.Array,
    batch: Batches | None,
    num_steps: int = 0,
    schedule: str = "exp",
    loss: Loss = "cross_entropy",
    scope: str = "global",
    allocation: str | None = None,
) -> Masks:
    """Return the masks that a score method chooses; see :func:`dctps_jax.pruning.prune` for the arguments."""
    _check_options(num_steps, schedule, loss, scope)
    if not (allocation is None or (isinstance(allocation, str) and allocation == "")):
        check_choice("allocation", allocation, ALLOCATIONS)
    num_steps = num_steps or SCORES[method].default_steps
    groups = make_groups(
        {path: layer.kernel_shape for path, layer in prunable_layers(model).items()},
        density,
        rules,
        num_steps=num_steps,
        schedule=schedule,
        rounds=SCORES[method].rounds,
        scope=scope,
        allocation=allocation,
    )
    within = get_masks(model)
    groups.check_room(within)
    score = score_function(model, method, key, batch, loss)
    # TPUs would otherwise multiply in bfloat16, which changes the order of the scores.
    with jax.default_matmul_precision("float32"):
        masks = thin_out(score, groups.select, num_steps, within, regrow=SCORES[method].regrow)
    groups.check_room(masks)  # what a stack cannot keep in equal numbers is missing
    return masks


def _check_options(num_steps: Any, schedule: str, loss: Loss, scope: str) -> None:
    if not is_whole(num_steps) or num_steps < 0:
        raise UserError(
            f"num_steps is {words(num_steps)}; it must be a whole number of at least 1, or 0 for the method's own"
        )
    for name, value, choices in (("schedule", schedule, SCHEDULES), ("loss", loss, LOSSES), ("scope", scope, SCOPES)):
        if name == "loss" and callable(value):
            continue
        check_choice(name, value, choices)


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
    model: nnx.Module, method: str, key: jax.Array, batch: Batches | None, loss: Loss
) -> Callable[[Masks, int], Mapping[str, np.ndarray]]:
    """Return ``(masks, step) → scores`` for a method, a key of :data:`~dctps_jax.pruning.scores.SCORES`."""
    score = SCORES[method]
    batches_at = _batches_at(model, method, batch, loss)
    network = ScoredNetwork(model, key, loss=loss, temperature=score.temperature or 1.0, train=score.train)

    def scores(masks: Masks, step: int) -> dict[str, np.ndarray]:
        device_masks = {path: jnp.asarray(mask) for path, mask in masks.items()}
        return {path: np.asarray(values) for path, values in score.formula(network, device_masks, batches_at(step))}

    return scores


def _batches_at(model: nnx.Module, method: str, batch: Batches | None, loss: Loss) -> Callable[[int], list[Batch]]:
    """Return the batches of each step that the formula of ``method`` takes."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(nnx.state(model))):
        raise UserError(
            "a score needs the weights of the network; choose weights by a score outside of jax.jit and nnx.eval_shape"
        )
    needed = SCORES[method].batches
    if needed == "none":
        return lambda step: []
    if batch is None:
        use = "needs the shape of an input" if SCORES[method].temperature is None else "scores weights on data"
        raise UserError(f"{method} {use}: give batch=(images, integer labels)")
    checked_batches = CheckedBatches(model, batch, loss)
    if needed == "each step":
        return checked_batches
    first_batches = checked_batches(0)
    return lambda step: first_batches
