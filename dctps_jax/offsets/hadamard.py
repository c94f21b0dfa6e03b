"""The Hadamard offset: a corner of a Sylvester-Hadamard matrix."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dctps_jax.offsets.offset import Offset, check_sizes


def hadamard_matrix(n_in: int, n_out: int) -> np.ndarray:
    """Return the offset of a linear layer, float64 ``[n_in, n_out]``.

    Sylvester's matrices (Sylvester 1867) double in size: ``H_1 = [1]``, ``H_2n = [[H_n, H_n], [H_n, −H_n]]``. So ``H[i,
    j] = (−1)^(number of bits that i and j share)``. With ``N = max(n_in, n_out)``, D is the ``n_in × n_out`` corner of
    the smallest H with at least N rows, scaled like the DCT offset::

        D[i, j] = H[i, j] / √N

    Columns have norm 1 if ``n_in >= n_out`` and ``√(n_in / N)`` otherwise. They are orthogonal if ``n_in`` is a
    multiple of the smallest power of two that is at least ``n_out``; a corner that cuts through these blocks is not
    orthogonal.
    """
    check_sizes("Hadamard", n_in, n_out)
    shared_bits = np.bitwise_count(np.arange(n_in)[:, None] & np.arange(n_out))
    return np.where(shared_bits % 2 == 1, -1.0, 1.0) / math.sqrt(max(n_in, n_out))


def hadamard_kernel(shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Return :func:`hadamard_matrix` as a jax array in the kernel's shape.

    The signs follow from the row and column numbers. Under ``jax.jit`` they are computed inside the operation that uses
    D: no array of the kernel's size is part of the program.
    """
    n_in, n_out = math.prod(shape[:-1]), shape[-1]
    check_sizes("Hadamard", n_in, n_out)
    shared_bits = jax.lax.population_count(jnp.arange(n_in)[:, None] & jnp.arange(n_out)[None])
    entry = jnp.asarray(1 / math.sqrt(max(n_in, n_out)), dtype)
    return jnp.where(shared_bits % 2 == 1, -entry, entry).reshape(tuple(shape))


def hadamard_operations(n_in: int, n_out: int) -> float:
    """Return the operations of a product with D: the fewer of a matrix product and a fast Walsh-Hadamard transform.

    The transform of length n, a power of two, takes ``n log2 n`` additions (Fino & Algazi 1976).
    """
    exponent = (max(n_in, n_out) - 1).bit_length()
    return min(2 * n_in * n_out, 2**exponent * exponent)


HADAMARD = Offset(
    name="hadamard",
    label="Hadamard",
    matrix=hadamard_matrix,
    kernel=hadamard_kernel,
    operations=hadamard_operations,
)
