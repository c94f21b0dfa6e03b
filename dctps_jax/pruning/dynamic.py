"""Supports that change while training: RigL and SET move weights, gradual magnitude pruning removes them.

An update of RigL or SET drops the smallest active weights of a layer and grows as many weights that are then inactive:
the weights with the largest gradient of the dense kernel (RigL, Evci et al. 2020), or random ones (SET, Mocanu et al.
2018). The optimiser takes no step at an update.

Gradual magnitude pruning (Zhu & Gupta 2017) starts with all weights, or with many. At regular steps, after the
optimiser's step, it removes the smallest weights, until as many are left as the config asks for.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dctps_jax.errors import UserError

Counts = Mapping[str, int]


class MovingSchedule(NamedTuple):
    """When masks are updated, and which fraction of the active weights each update drops."""

    update_every: int
    end_step: int
    drop_fraction: float

    def is_update(self, step: Any) -> Any:
        """Return whether the step after ``step`` finished steps is an update.

        Every ``update_every``-th step before ``end_step`` is one. For a traced ``step`` the answer is traced, too.
        """
        return ((step + 1) % self.update_every == 0) & (step + 1 < self.end_step)

    def fraction(self, step: int) -> float:
        """Return ``drop_fraction / 2 · (1 + cos(π t / end))`` for the update after ``step`` finished steps."""
        return self.drop_fraction / 2 * (1 + math.cos(math.pi * (step + 1) / self.end_step))

    def moves_anything(self, counts: Mapping[str, int], sizes: Mapping[str, int]) -> bool:
        """Return whether the first update drops a weight in any layer. Later updates drop fewer."""
        first = self.update_every - 1
        return self.is_update(first) and any(self.drop_counts(first, counts, sizes).values())

    def drop_counts(self, step: int, counts: Mapping[str, int], sizes: Mapping[str, int]) -> dict[str, int]:
        """Return how many weights each layer drops, rounded down. A full layer drops none: it cannot grow any."""
        fraction = self.fraction(step)
        return {path: 0 if count == sizes[path] else int(count * fraction) for path, count in counts.items()}

    def counts_at(self, step: int, first: Counts, last: Counts) -> Counts:
        """Return how many weights each layer trains after ``step`` finished steps: the same number at every step."""
        return first

    def numbers_for(self, step: int, first: Counts, last: Counts, sizes: Counts) -> Counts:
        """Return the numbers of the update after ``step`` finished steps: how many weights each layer drops."""
        return self.drop_counts(step, first, sizes)

    def metrics(self, moved: Counts, density: float) -> dict[str, Any]:
        """Return the entries of the updates in an epoch's row of the metrics."""
        return {"weights_moved": moved}


class PruningSchedule(NamedTuple):
    """When gradual magnitude pruning removes weights: ``num_updates`` times, at every ``update_every``-th step."""

    update_every: int
    begin_step: int
    num_updates: int

    def is_update(self, step: int) -> bool:
        """Return whether the step after ``step`` finished steps is an update."""
        done = step + 1 - self.begin_step
        return done % self.update_every == 0 and 0 < done <= self.num_updates * self.update_every

    def fraction(self, step: int) -> float:
        """Return the share of the weights to remove that is still there after the update."""
        return self.left(step + 1)

    def left(self, step: int) -> float:
        """Return the part of the weights to remove that is still there after ``step`` finished steps.

        After k of n updates it is (1 - k/n)³. The sparsity is then that of Zhu & Gupta (2017), equation 1.
        """
        done = (step - self.begin_step) // self.update_every
        return (1 - min(max(done, 0), self.num_updates) / self.num_updates) ** 3

    def counts_at(self, step: int, first: Counts, last: Counts) -> Counts:
        """Return how many weights each layer trains after ``step`` finished steps, from ``first`` to ``last``."""
        left = self.left(step)
        return {path: last[path] + round((first[path] - last[path]) * left) for path in first}

    def numbers_for(self, step: int, first: Counts, last: Counts, sizes: Counts) -> Counts:
        """Return how many weights each layer keeps at the update after ``step`` finished steps."""
        return self.counts_at(step + 1, first, last)

    def metrics(self, moved: Counts, density: float) -> dict[str, Any]:
        """Return the entry in an epoch's row of the metrics: the density at the end of the epoch."""
        return {"density": density}


UpdateSchedule = MovingSchedule | PruningSchedule


def _moving(settings: Any, num_steps: int) -> MovingSchedule:
    return MovingSchedule(settings.update_every, int(settings.stop_fraction * num_steps), settings.drop_fraction)


def _pruning(settings: Any, num_steps: int) -> PruningSchedule:
    begin, end = (int(fraction * num_steps) for fraction in (settings.begin_fraction, settings.stop_fraction))
    num_updates = (end - begin) // settings.update_every
    if num_updates < 1:
        raise UserError(
            f"config.sparse_training.update_every is {settings.update_every}, but pruning begins at step {begin} and "
            f"stops at step {end} of {num_steps}, so that no weight would ever be pruned; lower it, or train longer"
        )
    return PruningSchedule(settings.update_every, begin, num_updates)


# Name → a function of the fields of config.sparse_training and the number of steps, which returns when weights change.
# dctps_jax.training.mask_updates has the updates themselves, by the same names.
UPDATE_SCHEDULES: dict[str, Callable[[Any, int], UpdateSchedule]] = {"rigl": _moving, "set": _moving, "gmp": _pruning}
METHODS = ("static", *UPDATE_SCHEDULES)
# The methods that keep the number of trained weights.
MOVING = tuple(name for name, schedule in UPDATE_SCHEDULES.items() if schedule is _moving)


def update_schedule(config: Any, steps_per_epoch: int) -> UpdateSchedule | None:
    """Return when the support of a run changes, or None if it stays the same.

    Raises :class:`~dctps_jax.errors.UserError` if gradual pruning would have no step to prune at.
    """
    settings = config.sparse_training
    if settings.method == "static":
        return None
    return UPDATE_SCHEDULES[settings.method](settings, config.num_epochs * steps_per_epoch)


def fractions_by_step(config: Any, steps_per_epoch: int, num_steps: int) -> np.ndarray:
    """Return the fraction of weights that each of the first ``num_steps`` steps of a run changes; -1: no update."""
    updates = update_schedule(config, steps_per_epoch)
    if updates is None:
        return np.full(num_steps, -1.0)
    return np.array([updates.fraction(step) if updates.is_update(step) else -1.0 for step in range(num_steps)])


def move_weights(
    kernel: jax.Array, mask: jax.Array, growth: jax.Array, num_drop: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Drop and grow in one layer; return (new mask, kept), of the kernel's shape.

    First the ``num_drop`` active weights of the smallest magnitude are dropped. Then, among all positions that are
    inactive now, the ``num_drop`` positions with the highest ``growth`` are grown. As in the authors' code, a weight
    may be dropped and grown in the same update; it then was never off. The earlier position wins a tie. The number of
    active weights stays the same.

    ``kept`` marks the weights that are active before and after. At all other positions the caller sets the weight and
    its optimiser state to zero.
    """
    chex.assert_equal_shape((kernel, mask, growth))
    # NaN counts as no gradient. Sorting would put NaN last, even behind the weights that stay.
    active, growth = mask.ravel(), jnp.where(jnp.isnan(growth), 0, growth).ravel()
    # Active weights rank before all others, the largest first. -1 puts the others behind active weights of exactly 0.
    magnitude = jnp.where(active, jnp.abs(kernel.ravel()), -1)
    num_keep = active.sum() - num_drop
    not_dropped = _ranks(magnitude) < num_keep
    grown = _ranks(jnp.where(not_dropped, -jnp.inf, growth)) < num_drop
    new_mask = not_dropped | grown
    return new_mask.reshape(mask.shape), (new_mask & active).reshape(mask.shape)


def largest_weights(kernel: jax.Array, mask: jax.Array, num_keep: jax.Array) -> jax.Array:
    """Return the mask of the ``num_keep`` active weights of the largest magnitude; the earlier position wins a tie."""
    magnitude = jnp.where(mask, jnp.abs(kernel), -1).ravel()
    return (_ranks(magnitude) < num_keep).reshape(mask.shape)


def _ranks(values: jax.Array) -> jax.Array:
    """Return the rank of each entry, 0 for the highest; equal entries rank in the order of their positions."""
    order = jnp.argsort(-values, stable=True)
    return (
        jnp.zeros(values.shape, jnp.int32).at[order].set(jnp.arange(values.size, dtype=jnp.int32), unique_indices=True)
    )


def keep_only(opt_state: Any, kept: Any) -> Any:
    """Return the optimiser's state, set to zero where ``kept`` is False: booleans in a tree like the parameters."""
    return map_moments(lambda value, mask: jnp.where(mask, value, 0), opt_state, kept, kept)


def map_moments(function: Callable[..., Any], opt_state: Any, params: Any, *trees: Any) -> Any:
    """Return the optimiser's state with ``function(array, *leaves)`` for each array that belongs to a parameter.

    An array belongs to the parameter with whose path its own path ends, and has its shape, e.g. a moment of Adam. The
    ``leaves`` are those of ``trees`` at the same path. All other arrays stay, e.g. the sums over rows and columns of
    ``optax.adafactor``. ``optax.tree_utils.tree_map_params`` (optax 0.2.8) fails where an optimiser has only a part of
    the parameters, as ``optax.masked`` and muon do; tests/pruning/test_dynamic_sparse.py has such optimisers.
    """
    shapes = {path: leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    leaves = [dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in trees]

    def mapped(path: Sequence[Any], array: Any) -> Any:
        for start in range(len(path) + 1):  # the longest end first
            if (end := tuple(path[start:])) in shapes:
                is_own = shapes[end] == getattr(array, "shape", None)
                return function(array, *(leaf[end] for leaf in leaves)) if is_own else array
        return array

    return jax.tree_util.tree_map_with_path(mapped, opt_state)


def skip_optimizer_step(opt_state: Any) -> Any:
    """Count a step in the learning-rate schedule only: the rate also follows training steps without an update."""

    def count(node: Any) -> Any:
        if isinstance(node, optax.ScaleByScheduleState):
            return node._replace(count=node.count + 1)
        return node

    return jax.tree.map(count, opt_state, is_leaf=lambda node: isinstance(node, optax.ScaleByScheduleState))
