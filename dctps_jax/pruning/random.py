"""Random supports: an exact number of positions, each set of that size equally likely. The key determines the set."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from dctps_jax.arguments import check_by_path, check_shapes, names_of, words
from dctps_jax.errors import UserError
from dctps_jax.pruning.layer_rules import Shapes
from dctps_jax.pruning.masks import mask_of_support
from dctps_jax.seeds import as_key


def random_masks(key: jax.Array | int, shapes: Shapes, counts: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return a boolean mask of each shape with exactly ``counts[path]`` random entries True.

    Layer i draws from ``jax.random.fold_in(key, i)``. So its mask depends only on the key, i, its shape and its count.
    """
    supports = random_supports(key, shapes, counts)
    return {path: mask_of_support(support, shapes[path]) for path, support in supports.items()}


def random_supports(
    key: jax.Array | int,
    shapes: Shapes,
    counts: Mapping[str, int],
    stacks: Shapes = MappingProxyType({}),
) -> dict[str, np.ndarray]:
    """Return the positions where :func:`random_masks` is True in each flattened kernel, ascending. No mask is made.

    For stacked layers, ``stacks`` has the sizes of the stack's axes, ``counts`` the number of weights of the whole
    stack, and the positions are ``[*stack, nnz]``. Layer j of stack i draws from ``fold_in(fold_in(key, i), j)``.

    Raises :class:`~dctps_jax.errors.UserError` for a count that a layer cannot keep, and for a key that is traced.
    """
    return random_supports_within({}, key, shapes, counts, stacks)


def random_supports_within(
    masks: Mapping[str, np.ndarray],
    key: jax.Array | int,
    shapes: Shapes,
    counts: Mapping[str, int],
    stacks: Shapes = MappingProxyType({}),
) -> dict[str, np.ndarray]:
    """Return the result of :func:`random_supports`, with only positions where a mask is True for layers in ``masks``.

    The first axes of a mask are the axes in ``stacks``. A mask that is True everywhere changes nothing. Also raises
    :class:`~dctps_jax.errors.UserError` for a count above the number of weights that a mask keeps.
    """
    _check(key, shapes, counts, stacks)
    key, supports = as_key(key), {}
    with jax.ensure_compile_time_eval():  # also works in a traced function that builds a network
        for position, (path, shape) in enumerate(shapes.items()):
            stack, size = tuple(stacks.get(path, ())), math.prod(shape)
            keys = _layer_keys(jax.random.fold_in(key, position), stack)
            count, rest = divmod(counts[path], len(keys))
            if rest or not 0 <= count <= size:
                raise UserError(f"{names_of([path])} has {size * len(keys)} weights; it cannot keep {counts[path]}")
            drawn = []
            for number, layer_key in enumerate(keys):
                if path not in masks:
                    drawn.append(random_support(layer_key, size, count))
                    continue
                allowed = np.flatnonzero(masks[path].reshape(len(keys), size)[number])
                check_room(len(allowed), count, names_of([path]))
                drawn.append(allowed[random_support(layer_key, len(allowed), count)])
            supports[path] = np.stack(drawn).reshape(*stack, count)
    return supports


def _check(key: Any, shapes: Any, counts: Any, stacks: Any) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` for a key that is traced, and for arguments of other types."""
    check_shapes("shapes", shapes)
    check_shapes("stacks", stacks)
    check_by_path("counts", counts, "counts")
    for path in shapes:
        if not isinstance(counts.get(path), int | np.integer) or isinstance(counts[path], bool):
            raise UserError(
                f"counts has {words(counts.get(path))} for {path}; it must have a whole number for each layer"
            )
    if isinstance(key, Tracer):
        raise UserError(
            "the key is traced, and which weights are trained must be known before; make it outside of the function "
            "that is traced, e.g. by nnx.eval_shape or nnx.jit"
        )


def _layer_keys(key: jax.Array, stack: Sequence[int]) -> list[jax.Array]:
    return [jax.random.fold_in(key, layer) for layer in range(math.prod(stack))] if stack else [key]


def check_room(kept: int, count: int, where: str) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` if masks keep fewer than ``count`` weights."""
    if count > kept:
        raise UserError(
            f"{where}: {count} weights are to be kept, and the masks that the network has keep {kept}; lower the "
            "density, or prune the network before it has masks"
        )


def random_support(key: jax.Array, size: int, count: int) -> np.ndarray:
    """Return ``count`` distinct positions below ``size`` in ascending order; each set of positions is equally likely.

    For up to half of the positions, work and memory are proportional to ``count``, not to ``size``. The numbers come
    from the raw stream of Philox: NumPy promises never to change it, but may change its sampling functions.
    """
    if count > size - count:
        return np.setdiff1d(np.arange(size), random_support(key, size, size - count), assume_unique=True)
    stream = random_stream(key)
    # Drawing with replacement and keeping first occurrences makes each set equally likely. The modulo makes a position
    # more likely than another by at most size / 2^64.
    support = np.empty(0, np.int64)
    while len(support) < count:
        draws = (stream.random_raw(2 * count + 16) % np.uint64(size)).astype(np.int64)
        drawn = np.concatenate([support, draws])
        _, first = np.unique(drawn, return_index=True)
        support = drawn[np.sort(first)][:count]
    return np.sort(support)


def random_stream(key: jax.Array) -> np.random.Philox:
    """Return the stream of random numbers of a key, typed or of the old kind."""
    words = np.asarray(jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key)
    return np.random.Philox(key=int.from_bytes(words.tobytes()[:16], "little"))
