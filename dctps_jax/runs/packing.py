"""Pack the arrays of a training state into a few large arrays of bytes, which compress well, and unpack them."""

import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

DIFFERENCES = ("int32",)


def flatten(tree: Any) -> dict[str, jax.Array]:
    """Return the leaves of ``tree`` by path, ``"opt_state/0/mu/fc/kernel"``, in the tree's own order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def pack(arrays: Mapping[str, jax.Array | np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays as one array of bytes for each dtype, and an index.

    Hundreds of small files would be larger than their content. The bytes stand plane by plane: first the lowest byte of
    all numbers, and so on. The planes of signs and exponents compress well, the planes of mantissas do not. Positions
    ascend, so their differences are kept. The index has the names, dtypes and shapes in order, as JSON compressed by
    zlib.
    """
    index = [[name, str(array.dtype), list(array.shape)] for name, array in arrays.items()]
    groups: dict[str, list[np.ndarray]] = {}
    for array in arrays.values():
        groups.setdefault(str(array.dtype), []).append(np.asarray(array).ravel())
    packed = {}
    for dtype, group in groups.items():
        together = np.concatenate(group)
        if dtype in DIFFERENCES:
            together = np.diff(together, prepend=together.dtype.type(0))
        packed[dtype] = np.ascontiguousarray(together.view(np.uint8).reshape(-1, together.dtype.itemsize).T)
    packed["index"] = np.frombuffer(zlib.compress(json.dumps(index).encode()), np.uint8)
    return packed


def unpack(packed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays that :func:`pack` packed."""
    index = json.loads(zlib.decompress(np.asarray(packed["index"]).tobytes()))
    numbers = {}
    for dtype, planes in packed.items():
        if dtype != "index":
            numbers[dtype] = np.ascontiguousarray(np.asarray(planes).T).view(jnp.dtype(dtype)).ravel()
            if dtype in DIFFERENCES:
                numbers[dtype] = np.cumsum(numbers[dtype], dtype=dtype)
    arrays, taken = {}, dict.fromkeys(numbers, 0)
    for name, dtype, shape in index:
        start, size = taken[dtype], math.prod(shape)
        arrays[name] = numbers[dtype][start : start + size].reshape(shape)
        taken[dtype] += size
    return arrays


def digest(arrays: Mapping[str, jax.Array | np.ndarray]) -> str:
    """Return a SHA-256 over names, dtypes, shapes and bytes."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        sha.update(f"{name} {array.dtype} {array.shape}\n".encode())
        sha.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return sha.hexdigest()
