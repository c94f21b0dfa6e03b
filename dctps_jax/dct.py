"""The fixed offset D: a corner of an orthonormal DCT-II matrix, for linear layers and convolutions."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# Up to this size (256 KiB in float32) a kernel is a smaller part of a program than the arithmetic that would make it.
MAX_CONSTANT_SIZE = 2**16


def dct_matrix(n_in: int, n_out: int) -> np.ndarray:
    """Return the offset of a linear layer, float64 ``[n_in, n_out]``.

    With ``N = max(n_in, n_out)`` (Price & Tanner 2021, section 3)::

        D[r, m] = s_m cos(π (2r + 1) m / 2N),   s_0 = √(1/N),   s_m = √(2/N)

    which is ``scipy.fft.dct(np.eye(N), norm="ortho")[:n_in, :n_out]``. Columns are orthonormal when
    ``n_in >= n_out``; otherwise they are cut short and not rescaled.
    """
    _check_positive(n_in, n_out)
    return np.cos(angles(2 * np.arange(n_in)[:, None] + 1, n_in, n_out)) * column_scale(n_in, n_out)


def conv_kernel(shape: Sequence[int]) -> np.ndarray:
    """Return the offset of a convolution, float64 of ``shape = (*spatial, in_features // groups, out_features)``.

    The rows of :func:`dct_matrix` run over a flattened patch in C order: position first, then input channel. Every
    spatial rank, kernel size and group count is allowed; a linear layer is the rank without positions, ``(in, out)``.
    """
    return dct_matrix(math.prod(shape[:-1]), shape[-1]).reshape(tuple(shape))


def angles(odd: np.ndarray, n_in: int, n_out: int) -> np.ndarray:
    """Return ``π · odd · m / 2N`` modulo 2π for every column m, float64 ``[..., n_out]``; ``odd [..., 1]`` are integers.

    Integer phases modulo the period 4N keep the arguments of the cosine small, so that no digits are lost.
    """
    n = max(n_in, n_out)
    return odd * np.arange(n_out) % (4 * n) * (np.pi / (2 * n))


def column_scale(n_in: int, n_out: int) -> np.ndarray:
    """Return ``s_m`` of every column, float64 ``[n_out]``."""
    n = max(n_in, n_out)
    scale = np.full(n_out, math.sqrt(2 / n))
    scale[0] = math.sqrt(1 / n)
    return scale


def offset_kernel(shape: Sequence[int], dtype=jnp.float32) -> jax.Array:
    """Return :func:`conv_kernel` as a jax array of ``dtype``.

    Kernels of up to :data:`MAX_CONSTANT_SIZE` weights are constants of the program. Larger ones are generated: a row
    ``j = q·R + r`` splits the angle, ``2j + 1 = 2qR + (2r + 1)``, and cos(a + b) = cos a cos b − sin a sin b makes D the
    sum of two outer products of tables with about ``2 √n_in`` rows. Under ``jax.jit`` these are computed inside the
    operation that uses D: no array of the kernel's size is part of the program or of the state. Generated float32 values
    are within 2e-7 · s_m of the exact ones.
    """
    n_in, n_out = math.prod(shape[:-1]), shape[-1]
    if n_in * n_out <= MAX_CONSTANT_SIZE:
        return jnp.asarray(conv_kernel(shape), dtype)
    # Half precision tables would spoil D itself; the caller rounds the finished kernel.
    working = jnp.promote_types(dtype, jnp.float32)
    cos_q, sin_q, cos_r, sin_r = (jnp.asarray(table, working) for table in _angle_tables(n_in, n_out))
    matrix = (cos_q[:, None] * cos_r[None] - sin_q[:, None] * sin_r[None]).reshape(-1, n_out)[:n_in]
    return matrix.reshape(tuple(shape)).astype(dtype)


def _angle_tables(n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return cos and sin of the coarse angle, ``[ceil(n_in / R), n_out]``, and of the fine one, ``[R, n_out]``.

    The column scale s_m is part of the fine tables.
    """
    _check_positive(n_in, n_out)
    radix = math.isqrt(n_in - 1) + 1
    coarse = angles(2 * radix * np.arange(-(-n_in // radix))[:, None], n_in, n_out)
    fine = angles(2 * np.arange(radix)[:, None] + 1, n_in, n_out)
    scale = column_scale(n_in, n_out)
    return np.cos(coarse), np.sin(coarse), np.cos(fine) * scale, np.sin(fine) * scale


def _check_positive(n_in: int, n_out: int) -> None:
    if n_in < 1 or n_out < 1:
        raise ValueError(f"a DCT matrix needs at least one row and one column, got {n_in} × {n_out}")
