"""Random supports: exactly as many positions as asked, uniformly among all such sets, a function of the key alone."""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dctps_jax.errors import UserError
from dctps_jax.pruning.masks import mask_of_support


def random_masks(
    key: jax.Array, shapes: Mapping[str, Sequence[int]], counts: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Return a boolean mask of each shape with exactly ``counts[path]`` entries True, uniformly at random.

    Layer i draws from ``jax.random.fold_in(key, i)``, so that a layer's mask depends on its place, shape and count
    only.
    """
    supports = random_supports(key, shapes, counts)
    return {path: mask_of_support(support, shapes[path]) for path, support in supports.items()}


def random_supports(
    key: jax.Array, shapes: Mapping[str, Sequence[int]], counts: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Return the ascending positions of :func:`random_masks` in each flattened kernel, without an array of its size."""
    supports = {}
    for position, (path, shape) in enumerate(shapes.items()):
        size = math.prod(shape)
        if not 0 <= counts[path] <= size:
            raise UserError(f"{path} has {size} weights; it cannot keep {counts[path]}")
        supports[path] = random_support(jax.random.fold_in(key, position), size, counts[path])
    return supports


def random_support(key: jax.Array, size: int, count: int) -> np.ndarray:
    """Return ``count`` distinct sorted positions below ``size``, uniform among all such sets.

    Work and memory are proportional to ``count``, not to ``size``. Only Philox's raw
    stream is used, which NumPy promises never to change, unlike the sampling functions above it.
    """
    if count > size - count:
        return np.setdiff1d(np.arange(size), random_support(key, size, size - count), assume_unique=True)
    words = np.asarray(jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key)
    stream = np.random.Philox(key=int.from_bytes(words.tobytes()[:16], "little"))
    # Drawing with replacement and keeping first occurrences is uniform over sets; the modulo's bias is size / 2^64.
    support = np.empty(0, np.int64)
    while len(support) < count:
        draws = (stream.random_raw(2 * count + 16) % np.uint64(size)).astype(np.int64)
        drawn = np.concatenate([support, draws])
        _, first = np.unique(drawn, return_index=True)
        support = drawn[np.sort(first)][:count]
    return np.sort(support)
