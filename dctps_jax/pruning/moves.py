"""Moves of RigL and SET in your own training loop: at which steps, how many weights of each masked array, and how."""

import logging
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from dctps_jax.arguments import check_choice, is_number, is_whole, words
from dctps_jax.errors import UserError
from dctps_jax.partitioning import placed_like
from dctps_jax.pruning.dynamic import MOVING, MovingSchedule, move_weights
from dctps_jax.seeds import as_key

MASKED_GRADIENTS = (
    "the gradients of a move are zero at all weights that are not trained, so that they say nothing of where weights "
    "should grow; give the gradients of the dense kernels: those of unmasked_copy(model), or of the whole arrays"
)


class Moves:
    """When weights move, and how many of each masked array: ``drops`` has a row for each move. Compared by identity.

    ``counts`` are the numbers of weights that the masks keep.
    """

    def __init__(self, schedule: MovingSchedule, drops: np.ndarray, counts: list[int], key: jax.Array | None):
        self.schedule, self.drops, self.counts, self.key = schedule, drops, counts, key

    @classmethod
    def make(
        cls,
        masks: Sequence[np.ndarray],
        method: str,
        update_every: int,
        end_step: int,
        drop_fraction: float,
        key: jax.Array | int | None,
    ) -> "Moves":
        """Return the moves of masked arrays, with the same numbers as the trainer."""
        check_choice("method", method, MOVING)
        for name, value in (("update_every", update_every), ("end_step", end_step)):
            if not is_whole(value) or value < 1:
                raise UserError(f"{name} is {words(value)}; it must be a whole number of at least 1")
        if not is_number(drop_fraction) or not 0 <= drop_fraction <= 1:
            raise UserError(f"drop_fraction is {words(drop_fraction)}; it must be from 0 to 1")
        if method == "set" and key is None:
            raise UserError("method is 'set', which draws random positions; give it a key, e.g. key=0")
        if method != "set" and key is not None:
            raise UserError(f"key is {words(key)}, but method {method!r} draws nothing at random; leave out key")
        if not masks:
            raise UserError("there is no mask, so that no weight could move; give a mask to each array that is sparse")
        schedule = MovingSchedule(update_every, end_step, drop_fraction)
        counts, sizes = ({str(n): int(of(mask)) for n, mask in enumerate(masks)} for of in (np.sum, np.size))
        steps = range(update_every - 1, end_step - 1, update_every)
        drops = [list(schedule.drop_counts(step, counts, sizes).values()) for step in steps]
        seeded = None if key is None else as_key(key)
        rows = np.array(drops, np.int32).reshape(len(drops), len(masks))
        return cls(schedule, rows, list(counts.values()), seeded)

    def apply(self, step: jax.Array, parts: Any) -> list[tuple[jax.Array, jax.Array]]:
        """Return (new mask, kept) for each (array, mask, gradient), as :func:`move_weights` does.

        Outside ``jax.jit`` they are divided among devices like the mask.
        """
        num_drop = jnp.zeros(self.drops.shape[1], jnp.int32)
        if len(self.drops):
            row = jnp.clip((step + 1) // self.schedule.update_every - 1, 0, len(self.drops) - 1)
            num_drop = jnp.where(self.schedule.is_update(step), jnp.asarray(self.drops)[row], 0)
        moved, parts = [], list(parts)
        self._check_counts([mask for _, mask, _ in parts])
        if self.key is None:
            _check_dense(num_drop.any(), [(mask, gradient) for _, mask, gradient in parts])
        for number, (array, mask, gradient) in enumerate(parts):
            if jnp.shape(gradient) != jnp.shape(array):
                raise UserError(
                    f"a gradient has shape {jnp.shape(gradient)}, and its array {jnp.shape(array)}; give the gradients "
                    "of the dense arrays, in a tree like the parameters"
                )
            growth = jnp.abs(gradient)
            if self.key is not None:
                growth = jax.random.uniform(jax.random.fold_in(jax.random.fold_in(self.key, step), number), mask.shape)
            new, kept = move_weights(array, mask, growth, num_drop[number])
            moved.append((placed_like(new, mask), placed_like(kept, mask)))
        return moved

    def _check_counts(self, masks: Sequence[jax.Array]) -> None:
        """Raise UserError if the masks were pruned again: the numbers of weights to move would no longer fit."""
        if len(masks) != len(self.counts):
            raise UserError(
                f"the network has {len(masks)} masks, and had {len(self.counts)} when the optimiser was made; make the "
                "optimiser after pruning"
            )
        for mask, expected in zip(masks, self.counts, strict=True):
            if not isinstance(mask, Tracer) and (found := int(mask.sum())) != expected:
                raise UserError(
                    f"a mask keeps {found} weights, and kept {expected} when the optimiser was made; make the "
                    "optimiser after pruning"
                )


def _check_dense(is_move: jax.Array, parts: Sequence[tuple[jax.Array, jax.Array]]) -> None:
    """Raise UserError for gradients that are zero wherever a mask is False: they do not say which weights should grow.

    In a traced program the values are not known yet; a warning goes to the log when it runs.
    """
    if any(jnp.shape(mask) != jnp.shape(gradient) for mask, gradient in parts):
        return
    on_mask, off_mask = (
        jnp.array([jnp.any((gradient != 0) & (mask == is_on)) for mask, gradient in parts]).any()
        for is_on in (True, False)
    )
    is_masked = is_move & on_mask & ~off_mask
    if isinstance(is_masked, Tracer):
        jax.debug.callback(_warn_of_masked_gradients, is_masked)
    elif is_masked and not all(np.asarray(mask).all() for mask, _ in parts):
        raise UserError(MASKED_GRADIENTS)


def _warn_of_masked_gradients(is_masked: Any) -> None:
    if is_masked:
        logging.getLogger("dctps_jax").warning(MASKED_GRADIENTS)
