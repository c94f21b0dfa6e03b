"""The steps that change the supports, by method of sparse training, and how many weights are trained at which step."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dctps_jax.pruning.dynamic import Counts, UpdateSchedule, largest_weights
from dctps_jax.training.gradients import Mesh
from dctps_jax.training.state import Graphs, TrainState, supports_by_path
from dctps_jax.training.step import kernel_of, mask_update_step, train_step, tree_of_kernels, with_masks

Numbers = Mapping[str, Any]
Updated = tuple[TrainState, dict[str, jax.Array], dict[str, jax.Array]]
Batch = tuple[jax.Array, jax.Array]


class UpdateSettings(NamedTuple):
    """Settings of an update, besides the state, the batch and its numbers. ``key`` is the random key of the step."""

    graphs: Graphs
    optimizer: optax.GradientTransformation
    key: jax.Array
    mesh: Mesh | None = None
    loss_scale: float = 1.0
    ema_decay: float = 0.0


def grow_by_gradient(state: TrainState, batch: Batch, num_drop: Numbers, settings: UpdateSettings) -> Updated:
    """Move weights to where the gradient of the dense kernel is largest (RigL)."""
    return _move(state, batch, num_drop, None, settings)


def grow_at_random(state: TrainState, batch: Batch, num_drop: Numbers, settings: UpdateSettings) -> Updated:
    """Move weights to random positions (SET)."""
    return _move(state, batch, num_drop, settings.key, settings)


def _move(
    state: TrainState, batch: Batch, num_drop: Numbers, growth_key: jax.Array | None, settings: UpdateSettings
) -> Updated:
    return mask_update_step(
        state,
        batch,
        num_drop,
        growth_key,
        graphs=settings.graphs,
        mesh=settings.mesh,
        loss_scale=settings.loss_scale,
    )


def prune_by_magnitude(state: TrainState, batch: Batch, num_keep: Numbers, settings: UpdateSettings) -> Updated:
    """Take an optimiser step, then keep only the largest weights of each layer (gradual magnitude pruning)."""
    state, metrics = train_step(
        state,
        batch,
        graph=settings.graphs.train,
        optimizer=settings.optimizer,
        mesh=settings.mesh,
        random=settings.graphs.random,
        ema_decay=settings.ema_decay,
        loss_scale=settings.loss_scale,
    )
    masks = {
        path: largest_weights(kernel_of(state.params, path), mask, num_keep[path])
        for path, mask in supports_by_path(state.supports).items()
    }
    state = with_masks(state, masks, tree_of_kernels(state, masks))
    return state, metrics, dict.fromkeys(masks, jnp.zeros((), jnp.int32))


# By the names of dctps_jax.pruning.dynamic.UPDATE_SCHEDULES: (state, batch, numbers of the schedule by layer, settings)
# → (state, metrics, how many weights have moved by layer).
MASK_UPDATES = {"rigl": grow_by_gradient, "set": grow_at_random, "gmp": prune_by_magnitude}


class WeightCounts(NamedTuple):
    """How many weights each layer trains, by dotted path, at ``first`` and at ``last``; ``sizes`` count all weights."""

    updates: UpdateSchedule | None
    first: Counts
    last: Counts
    sizes: Counts

    def at(self, step: int) -> Counts:
        """Return the counts after ``step`` finished steps."""
        return self.first if self.updates is None else self.updates.counts_at(step, self.first, self.last)

    def density_at(self, step: int) -> float:
        """Return trained weights ÷ all weights after ``step`` finished steps."""
        return sum(self.at(step).values()) / sum(self.sizes.values())

    def numbers_for(self, step: int) -> Counts:
        """Return the numbers of each layer for the update after ``step`` finished steps."""
        assert self.updates is not None
        return self.updates.numbers_for(step, self.first, self.last, self.sizes)

    def means(self, num_steps: int) -> Mapping[str, float]:
        """Return the mean counts over the first ``num_steps`` steps."""
        if self.first == self.last:
            return self.last
        counts = [self.at(step) for step in range(num_steps)]
        return {path: sum(count[path] for count in counts) / num_steps for path in self.last}
