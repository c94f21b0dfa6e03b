"""Dynamic sparse training: RigL and SET move a part of each layer's weights every so many steps.

An update drops the smallest active weights of a layer and grows as many others: those with the largest gradient of the
dense kernel (RigL, Evci et al. 2020) or at random (SET, Mocanu et al. 2018). The optimiser takes no step on it.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

METHODS = ("static", "rigl", "set")


class UpdateSchedule(NamedTuple):
    """When masks are updated, and which fraction of the active weights each update drops."""

    update_every: int
    end_step: int
    drop_fraction: float

    def is_update(self, step: int) -> bool:
        """Return whether the step after ``step`` finished ones is an update: every ``update_every``-th before the end."""
        return (step + 1) % self.update_every == 0 and step + 1 < self.end_step

    def fraction(self, step: int) -> float:
        """Return ``drop_fraction / 2 · (1 + cos(π t / end))`` for the update after ``step`` finished steps."""
        return self.drop_fraction / 2 * (1 + math.cos(math.pi * (step + 1) / self.end_step))

    def moves_anything(self, counts: Mapping[str, int], sizes: Mapping[str, int]) -> bool:
        """Return whether the first update, which drops most, drops a weight in any layer."""
        first = self.update_every - 1
        return self.is_update(first) and any(self.drop_counts(first, counts, sizes).values())

    def drop_counts(self, step: int, counts: Mapping[str, int], sizes: Mapping[str, int]) -> dict[str, int]:
        """Return how many weights each layer drops, rounded down; none where there is nothing else to grow."""
        fraction = self.fraction(step)
        return {path: 0 if count == sizes[path] else int(count * fraction) for path, count in counts.items()}


def move_weights(
    kernel: jax.Array, mask: jax.Array, growth: jax.Array, num_drop: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Drop and grow in one layer; return (new mask, kept), of the kernel's shape.

    ``kept`` marks weights that were active and stay so: all others, the regrown ones too, have a weight and an
    optimiser state of zero. The ``num_drop`` active weights smallest by magnitude go; among everything not kept the
    ``num_drop`` positions with the highest ``growth`` come. One that was dropped may come straight back, as in the
    authors' code: it was never off, and counts as kept. Ties go to the earlier position. The number of active weights
    stays.
    """
    # A gradient that is not a number is none to grow by; sorting would put it behind what is kept.
    active, growth = mask.ravel(), jnp.where(jnp.isnan(growth), 0, growth).ravel()
    # Active weights come before all others, the larger first; a weight of exactly 0 that is active still counts as
    # such.
    magnitude = jnp.where(active, jnp.abs(kernel.ravel()), -1)
    num_keep = active.sum() - num_drop
    stays = _ranks(magnitude) < num_keep
    comes = _ranks(jnp.where(stays, -jnp.inf, growth)) < num_drop
    new = stays | comes
    return new.reshape(mask.shape), (new & active).reshape(mask.shape)


def _ranks(values: jax.Array) -> jax.Array:
    """Return each entry's place when sorted from the highest; equal ones in order of position."""
    order = jnp.argsort(-values, stable=True)
    return (
        jnp.zeros(values.shape, jnp.int32).at[order].set(jnp.arange(values.size, dtype=jnp.int32), unique_indices=True)
    )


def keep_only(optimizer: optax.GradientTransformation, opt_state: Any, kept: Any) -> Any:
    """Zero every optimiser's per-parameter state outside ``kept``, a tree of booleans like the parameters."""
    return optax.tree_utils.tree_map_params(optimizer, lambda value, mask: jnp.where(mask, value, 0), opt_state, kept)


def skip_optimizer_step(opt_state: Any) -> Any:
    """Count a step for the learning rate only, which is a matter of epochs, not of optimiser steps."""

    def count(node: Any) -> Any:
        if isinstance(node, optax.ScaleByScheduleState):
            return node._replace(count=node.count + 1)
        return node

    return jax.tree.map(count, opt_state, is_leaf=lambda node: isinstance(node, optax.ScaleByScheduleState))
