"""Offsets to compare the DCT with: a random orthogonal matrix, and kernels that pass single channels on."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dctps_jax.offsets import Offset


def orthogonal_matrix(n_in: int, n_out: int) -> np.ndarray:
    """Return a random matrix of orthonormal rows or columns, whichever are fewer: always the same for a shape."""
    normal = np.random.default_rng((n_in, n_out)).normal(size=(max(n_in, n_out), min(n_in, n_out)))
    unit, triangle = np.linalg.qr(normal)
    unit = unit * np.sign(np.diag(triangle))  # uniform among all orthogonal matrices (Mezzadri 2007)
    return unit if n_in >= n_out else unit.T


def orthogonal_kernel(shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    return jnp.asarray(orthogonal_matrix(math.prod(shape[:-1]), shape[-1]).reshape(tuple(shape)), dtype)


def delta_matrix(n_in: int, n_out: int) -> np.ndarray:
    """Return the matrix of a linear layer that passes input m mod n_in on to output m."""
    return (np.arange(n_in)[:, None] == np.arange(n_out) % n_in).astype(float)


def delta_kernel(shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Return the kernel that passes channels on as :func:`delta_matrix` says, at its middle position."""
    *size, n_in, n_out = shape
    middle = tuple(width // 2 for width in size)
    return jnp.zeros(tuple(shape), dtype).at[middle].set(jnp.asarray(delta_matrix(n_in, n_out), dtype))


def operations(n_in: int, n_out: int) -> float:
    """Return the operations of a product of a matrix with a vector."""
    return 2 * n_in * n_out


ORTHOGONAL = Offset("orthogonal", "random orthogonal", orthogonal_matrix, orthogonal_kernel, operations)
DELTA = Offset("delta", "delta", delta_matrix, delta_kernel, operations)
