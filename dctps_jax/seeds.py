"""One seed, several independent streams of random numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dctps_jax.arguments import words
from dctps_jax.errors import UserError

# What a run draws, each from a stream of its own. The position gives the stream, so new names come last.
STREAMS = (
    "init",  # initial weights
    "masks",  # random positions
    "split",  # which images validate
    "order",  # of the images in an epoch
    "augment",  # crops and flips
    "growth",  # where SET grows weights
    "cutout",
    "erasing",
    "mixup",
    "crop",  # random resized crops
)


def as_key(key: Any) -> jax.Array:
    """Return a key of JAX as it is, and ``jax.random.key(key)`` for a seed.

    Raises :class:`~dctps_jax.errors.UserError` for anything else, e.g. several keys, or a raw key whose length does not
    fit the default implementation.
    """
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        if not 0 <= key < 2**32:
            raise UserError(f"key is {key}; a seed must be a whole number from 0 to 2^32 - 1")
        with jax.ensure_compile_time_eval():  # also in a function that is traced
            return jax.random.key(int(key))
    if isinstance(key, jax.Array | np.ndarray):
        is_new = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        if is_new and key.ndim == 0:
            return jnp.asarray(key)
        if key.dtype == jnp.uint32 and key.shape == jax.eval_shape(jax.random.PRNGKey, 0).shape:
            return jnp.asarray(key)
    raise UserError(f"key is {words(key)}; it must be one key, e.g. jax.random.key(0), or a seed, e.g. 0")


def stream(seed: int | jax.Array, name: str) -> jax.Array:
    """Return the key of one of the :data:`STREAMS` of a run.

    ``seed`` is the seed of the run, or the key ``jax.random.key(seed)``: a program that takes the key as an argument
    serves all seeds. Every random number follows from ``fold_in`` of a stream with a step, epoch or position. So a run
    is a function of its config and seed, and resuming needs no state of a generator.
    """
    return jax.random.fold_in(jax.random.key(seed) if isinstance(seed, int) else seed, STREAMS.index(name))
