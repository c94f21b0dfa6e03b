"""Products with the DCT offset by a Fourier transform of real numbers (Makhoul 1980).

Let N be the larger side of D. The inputs x, filled up with zeros to N numbers, are put in the order ``v = (x_0, x_2, …,
x_{N−2}, x_{N−1}, …, x_3, x_1)``. With V the Fourier transform of v and ``θ_m = πm / 2N``, the outputs for ``m = 0 …
N/2`` are::
outputs for ``m = 0 … N/2`` are::

    y_m = s_m (cos θ_m Re V_m + sin θ_m Im V_m)
    y_{N−m} = s_m (sin θ_m Re V_m − cos θ_m Im V_m)

Outputs from n_out on are left out. This takes a multiple of ``N log2 N`` operations instead of ``2 n_in n_out``.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dctps_jax.offsets.dct_angles import angles, column_scale
from dctps_jax.precision import in_float32

# A Fourier transform is fast if its length has no other prime factors.
PRIMES = (2, 3, 5, 7)


class DctTransform(NamedTuple):
    """A :class:`~dctps_jax.offsets.offset.Transform`: products with the DCT matrix ``[n_in, n_out]``.

    Numbers in half precision are transformed in float32, and the results are rounded.
    """

    n_in: int
    n_out: int

    @property
    def length(self) -> int:
        return max(self.n_in, self.n_out)

    def product(self, inputs: jax.Array) -> jax.Array:
        x, half = in_float32(inputs), self.length // 2
        zeros = jnp.zeros((*x.shape[:-1], self.length - self.n_in), x.dtype)
        ordered = jnp.concatenate([x[..., ::2], zeros, x[..., 1::2][..., ::-1]], axis=-1)
        low = min(self.n_out, half + 1)
        spectrum = jnp.fft.rfft(ordered)[..., :low]
        cos, sin = self._rotations(low, x)
        outputs = cos * spectrum.real + sin * spectrum.imag
        if self.n_out > low:
            mirrored = sin * spectrum.real - cos * spectrum.imag
            outputs = jnp.concatenate([outputs, mirrored[..., half - 1 : self.length - self.n_out : -1]], axis=-1)
        return outputs.astype(inputs.dtype)

    def transposed(self, outputs: jax.Array) -> jax.Array:
        y, half = in_float32(outputs), self.length // 2
        low = min(self.n_out, half + 1)
        # The inverse transform divides by N, and it counts the first and the middle number once, the others twice.
        counted = np.where(np.isin(np.arange(low), (0, half)), self.length, self.length / 2)
        cos, sin = self._rotations(low, y, counted)
        real, imaginary = cos * y[..., :low], sin * y[..., :low]
        if self.n_out > low:
            # y_{N−m}, for m = 0 … N/2. The first and the middle number have no mirror image.
            missing = [(0, 0)] * (y.ndim - 1) + [(self.length - self.n_out + 1, 1)]
            mirrored = jnp.pad(y[..., low:][..., ::-1], missing)
            real, imaginary = real + sin * mirrored, imaginary - cos * mirrored
        # Missing parts of the spectrum count as zero.
        ordered = jnp.fft.irfft(jax.lax.complex(real, imaginary), self.length)
        pairs = (self.n_in + 1) // 2
        odd = ordered[..., self.length - pairs :][..., ::-1]
        inputs = jnp.stack([ordered[..., :pairs], odd], axis=-1).reshape(*y.shape[:-1], 2 * pairs)
        return inputs[..., : self.n_in].astype(outputs.dtype)

    def _rotations(self, count: int, like: jax.Array, times: Any = 1.0) -> tuple[jax.Array, jax.Array]:
        """Return ``s_m cos θ_m`` and ``s_m sin θ_m`` of the first ``count`` columns m, multiplied by ``times``.

        They have the dtype and the number of dimensions of ``like``.
        """
        theta = angles(np.ones(1, int), self.n_in, self.length)[:count]
        scale = column_scale(self.n_in, self.length)[:count] * times
        shape = (1,) * (like.ndim - 1) + (count,)
        cos, sin = ((scale * table).reshape(shape) for table in (np.cos(theta), np.sin(theta)))
        return jnp.asarray(cos, like.dtype), jnp.asarray(sin, like.dtype)


def dct_transform(n_in: int, n_out: int) -> DctTransform | None:
    """Return the transform of a DCT matrix; None where N is odd or has prime factors beyond :data:`PRIMES`."""
    rest = max(n_in, n_out)
    if rest % 2:
        return None
    for prime in PRIMES:
        while rest % prime == 0:
            rest //= prime
    return DctTransform(n_in, n_out) if rest == 1 else None
