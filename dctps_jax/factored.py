"""The convolution with the offset D by its centred factorisation: ``c_in·c_out`` multiply-adds a position, not ``k²·c_in·c_out``.

A row of D is a position p of the kernel and an input channel c. Measured from the middle of the channels its angle is
the sum of two, ``2(p·c_in + c) + 1 = (2p + 1)·c_in + (2c + 1 − c_in)``, so that with ``a[p, m] = π(2p + 1)·c_in·m / 2N``
and ``b[c, m] = π(2c + 1 − c_in)·m / 2N``::

    D[p, c, m] = s_m (cos a[p, m] cos b[c, m] − sin a[p, m] sin b[c, m])

``cos b`` is even and ``sin b`` odd under ``c → c_in − 1 − c``: with ``e = x[:h] + reverse(x[h:])``, ``o = x[:h] − reverse(x[h:])``,
``h = c_in / 2``, the channels are summed over in two products of half the size, ``u = e (s cos b)`` and ``v = −o (s sin b)``, and
``(D∗x)[i] = Σ_p u[i + p] cos a[p] + v[i + p] sin a[p]``. Exact, for strides of 1 and an even number of input channels.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dctps_jax import dct
from dctps_jax.convolution import pad_spatial, shifted_views
from dctps_jax.geometry import Geometry

# Padding before the products saves padding their two results, but multiplies the padding, too: up to so much growth.
MAX_PADDED_GROWTH = 1.3


def can_factor(geometry: Geometry) -> bool:
    """Return whether the factorisation exists for a convolution, and has anything to save."""
    return (
        geometry.num_positions > 1
        and max(geometry.strides) == 1
        and geometry.groups == 1
        and geometry.kernel_shape[-2] % 2 == 0
    )


def offset_convolution(inputs: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the convolution of ``inputs [batch, *spatial, in]`` with D, without making D."""
    spatial = inputs.shape[1:-1]
    padded = math.prod(length + sum(pair) for length, pair in zip(spatial, geometry.pads, strict=True))
    pad_first = padded <= MAX_PADDED_GROWTH * math.prod(spatial)
    if pad_first:
        inputs = pad_spatial(inputs, geometry.pads)
    half = inputs.shape[-1] // 2
    low, high = inputs[..., :half], inputs[..., half:][..., ::-1]
    cos_b, minus_sin_b = _channel_tables(geometry.kernel_shape, inputs.dtype)
    u = jnp.matmul(low + high, cos_b, precision=geometry.precision)
    v = jnp.matmul(low - high, minus_sin_b, precision=geometry.precision)
    if not pad_first:
        u, v = pad_spatial(u, geometry.pads), pad_spatial(v, geometry.pads)
    outputs = geometry.output_spatial(spatial)
    u, v = (shifted_views(x, geometry.size, outputs, geometry.strides) for x in (u, v))
    cos_a, sin_a = _position_tables(geometry.kernel_shape, inputs.dtype)
    return _sum(u_p * cos + v_p * sin for u_p, v_p, cos, sin in zip(u, v, cos_a, sin_a, strict=True))


def transposed_offset_convolution(outputs: jax.Array, geometry: Geometry, spatial: Sequence[int]) -> jax.Array:
    """Return ``Dᵀ∗outputs``, which :func:`offset_convolution` gives inputs of shape ``spatial`` as their gradient."""
    outputs = pad_spatial(outputs, geometry.transposed_pads())
    views = shifted_views(outputs, geometry.size, spatial, geometry.strides)
    u, v = (
        _sum(view * weight for view, weight in zip(views, table[::-1], strict=True))
        for table in _position_tables(geometry.kernel_shape, outputs.dtype)
    )
    cos_b, minus_sin_b = _channel_tables(geometry.kernel_shape, outputs.dtype)
    # Not a product with a transposed table: the compiler would store that one as well.
    even = jnp.einsum("...m,cm->...c", u, cos_b, precision=geometry.precision)
    odd = jnp.einsum("...m,cm->...c", v, minus_sin_b, precision=geometry.precision)
    return jnp.concatenate([even + odd, (even - odd)[..., ::-1]], axis=-1)


def _sum(terms: Iterable[jax.Array]) -> jax.Array:
    first, *others = terms
    return sum(others, first)


def _channel_tables(kernel_shape: Sequence[int], dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Return ``s cos b`` and ``−s sin b`` of the first half of the channels, ``[c_in / 2, c_out]``."""
    *_, in_features, out_features = kernel_shape
    n_in = math.prod(kernel_shape[:-1])
    angles = dct.angles(2 * np.arange(in_features // 2)[:, None] + 1 - in_features, n_in, out_features)
    scale = dct.column_scale(n_in, out_features)
    return jnp.asarray(scale * np.cos(angles), dtype), jnp.asarray(-scale * np.sin(angles), dtype)


def _position_tables(kernel_shape: Sequence[int], dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Return ``cos a`` and ``sin a``, ``[positions, 1 (batch), 1 (each spatial dimension), c_out]``."""
    *size, in_features, out_features = kernel_shape
    odd = (2 * np.arange(math.prod(size))[:, None] + 1) * in_features
    angles = dct.angles(odd, math.prod(kernel_shape[:-1]), out_features)
    shape = (len(angles), *(1,) * (len(size) + 1), out_features)
    return jnp.asarray(np.cos(angles).reshape(shape), dtype), jnp.asarray(np.sin(angles).reshape(shape), dtype)
