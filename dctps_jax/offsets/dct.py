"""The DCT offset: a corner of an orthonormal DCT-II matrix.

A row r of D is a position p of the kernel and an input channel c, ``r = p·c_in + c``. If c is measured from the middle
of the channels, the angle is the sum of two angles, because ``2r + 1 = (2p + 1)·c_in + (2c + 1 − c_in)``. With ``a[p,
m] = π(2p + 1)·c_in·m / 2N`` and ``b[c, m] = π(2c + 1 − c_in)·m / 2N``::

    D[p, c, m] = s_m (cos a[p, m] cos b[c, m] − sin a[p, m] sin b[c, m])

``cos b`` is even and ``sin b`` odd under ``c → c_in − 1 − c``. These are the :class:`~dctps_jax.offsets.offset.Factors`
of D.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dctps_jax.offsets.dct_angles import angles, column_scale
from dctps_jax.offsets.dct_transform import dct_transform
from dctps_jax.offsets.offset import Offset, check_sizes

# In a program, a kernel of at most this size (256 KiB in float32) takes less room than the arithmetic that computes it.
MAX_CONSTANT_SIZE = 2**16


def dct_matrix(n_in: int, n_out: int) -> np.ndarray:
    """Return the offset of a linear layer, float64 ``[n_in, n_out]``.

    With ``N = max(n_in, n_out)`` (Price & Tanner 2021, section 3)::

        D[r, m] = s_m cos(π (2r + 1) m / 2N),   s_0 = √(1/N),   s_m = √(2/N)

    which is ``scipy.fft.dct(np.eye(N), norm="ortho")[:n_in, :n_out]``. Columns are orthonormal when
    ``n_in >= n_out``; otherwise they are cut short and not rescaled.
    """
    check_sizes("DCT", n_in, n_out)
    return np.cos(angles(2 * np.arange(n_in)[:, None] + 1, n_in, n_out)) * column_scale(n_in, n_out)


def conv_kernel(shape: Sequence[int]) -> np.ndarray:
    """Return the offset of a convolution, float64 of ``shape = (*spatial, in_features // groups, out_features)``.

    The rows of :func:`dct_matrix` run over a flattened patch in C order: position first, then input channel. Every
    spatial rank, kernel size and group count is allowed. A linear layer has no spatial dimensions: ``(in, out)``.
    """
    return dct_matrix(math.prod(shape[:-1]), shape[-1]).reshape(tuple(shape))


def offset_kernel(shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Return :func:`conv_kernel` as a jax array of ``dtype``.

    Kernels of up to :data:`MAX_CONSTANT_SIZE` weights are constants of the program. Larger kernels are generated. A row
    ``j = q·R + r`` splits the angle, ``2j + 1 = 2qR + (2r + 1)``, and cos(a + b) = cos a cos b − sin a sin b. So D is
    the sum of two outer products of tables, which have about ``2 √n_in`` rows together. Under ``jax.jit`` the products
    are computed inside the operation that uses D: no array of the kernel's size is part of the program or of the state.
    Generated float32 values are within 2e-7 · s_m of the exact ones.
    """
    n_in, n_out = math.prod(shape[:-1]), shape[-1]
    if n_in * n_out <= MAX_CONSTANT_SIZE:
        return jnp.asarray(conv_kernel(shape), dtype)
    # Tables in half precision would spoil D. So they are at least float32, and only the finished kernel is rounded.
    working = jnp.promote_types(dtype, jnp.float32)
    cos_q, sin_q, cos_r, sin_r = (jnp.asarray(table, working) for table in _angle_tables(n_in, n_out))
    matrix = (cos_q[:, None] * cos_r[None] - sin_q[:, None] * sin_r[None]).reshape(-1, n_out)[:n_in]
    return matrix.reshape(tuple(shape)).astype(dtype)


def _angle_tables(n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return cos and sin of the coarse angle, ``[ceil(n_in / R), n_out]``, and of the fine one, ``[R, n_out]``.

    The column scale s_m is part of the fine tables.
    """
    check_sizes("DCT", n_in, n_out)
    radix = _radix(n_in)
    coarse = angles(2 * radix * np.arange(-(-n_in // radix))[:, None], n_in, n_out)
    fine = angles(2 * np.arange(radix)[:, None] + 1, n_in, n_out)
    scale = column_scale(n_in, n_out)
    return np.cos(coarse), np.sin(coarse), np.cos(fine) * scale, np.sin(fine) * scale


def _radix(n_in: int) -> int:
    """Return the number of fine angles: a divisor of ``n_in`` near its root, so that no extra row is made.

    It is a multiple of 16 if there is one: a TPU then makes the rows where they belong.
    """
    root = math.isqrt(n_in - 1) + 1
    divisors = [number for number in range(16, 4 * root, 16) if n_in % number == 0 and 4 * number >= root]
    return min(divisors, key=lambda number: abs(number - root), default=root)


class CentredFactors(NamedTuple):
    """The factors of a kernel of ``shape``. The docstring of this module derives them."""

    shape: Sequence[int]

    def channels(self) -> tuple[np.ndarray, np.ndarray]:
        """Return ``s cos b`` and ``−s sin b`` for the first half of the channels, float64 ``[c_in / 2, c_out]``."""
        n_in, (in_features, out_features) = math.prod(self.shape[:-1]), self.shape[-2:]
        b = angles(2 * np.arange(in_features // 2)[:, None] + 1 - in_features, n_in, out_features)
        scale = column_scale(n_in, out_features)
        return scale * np.cos(b), -scale * np.sin(b)

    def positions(self) -> tuple[np.ndarray, np.ndarray]:
        """Return ``cos a`` and ``sin a``, float64 ``[positions, c_out]``."""
        n_in, (in_features, out_features) = math.prod(self.shape[:-1]), self.shape[-2:]
        odd = (2 * np.arange(n_in // in_features)[:, None] + 1) * in_features
        a = angles(odd, n_in, out_features)
        return np.cos(a), np.sin(a)


def centred_factors(shape: Sequence[int]) -> CentredFactors | None:
    """Return the factors of a kernel with several positions and an even number of input channels, else None.

    With an odd number of channels, the middle channel has no partner. A kernel of one position has nothing to save.
    """
    has_factors = math.prod(shape[:-2]) > 1 and shape[-2] % 2 == 0
    return CentredFactors(shape) if has_factors else None


def dct_operations(n_in: int, n_out: int) -> float:
    """Return the operations of a product with D: the fewer of a matrix product and a fast cosine transform.

    The transform of length n takes ``2 n log2 n`` operations (Lee 1984).
    """
    n = max(n_in, n_out)
    return min(2 * n_in * n_out, 2 * n * math.log2(n))


DCT = Offset(
    name="dct",
    label="DCT",
    matrix=dct_matrix,
    kernel=offset_kernel,
    operations=dct_operations,
    torch_name="dct",
    factors=centred_factors,
    transform=dct_transform,
)
