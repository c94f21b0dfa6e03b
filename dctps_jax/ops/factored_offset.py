"""The convolution with an offset by its factors: ``c_in·c_out`` multiply-adds a position instead of ``k²·c_in·c_out``.

With the tables of :class:`~dctps_jax.offsets.Factors`, ``D[p, c, m] = even_p[p, m]·even_c[c, m] + odd_p[p, m]·odd_c[c,
m]``. ``even_c`` is even and ``odd_c`` odd under ``c → c_in − 1 − c``. With ``h = c_in / 2``, ``e = x[:h] +
reverse(x[h:])`` and ``o = x[:h] − reverse(x[h:])``, two products of half the size sum over the channels, ``u = e
even_c[:h]`` and ``v = o odd_c[:h]``, and ``(D∗x)[i] = Σ_p u[i + p] even_p[p] + v[i + p] odd_p[p]``. This is exact for
strides of 1. With few channels, the transposed convolution uses twice as many multiply-adds (``MAX_WHOLE``).
"""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dctps_jax.offsets import Factors
from dctps_jax.ops.costs import Costs
from dctps_jax.ops.geometry import Geometry
from dctps_jax.ops.views import pad_spatial, shifted_views
from dctps_jax.ops.work import Work

# Padding before the two products saves padding both results, but the products then include the padding. This saves time
# while the padding makes the inputs at most this many times as large.
MAX_PADDED_GROWTH = 1.3

# With up to this many input channels, the transposed convolution takes one product of whole width. It multiplies twice
# as often, but reads and writes fewer arrays. Compared with the previous code by alternating runs, a step of
# Fixup-ResNet110 on a CPU took 4 % less time. The forward convolution was slower in this way.
MAX_WHOLE = 32


def offset_convolution(inputs: jax.Array, geometry: Geometry, factors: Factors) -> jax.Array:
    """Return the convolution of ``inputs [batch, *spatial, in]`` with D, without making D."""
    spatial = inputs.shape[1:-1]
    padded = math.prod(length + sum(pair) for length, pair in zip(spatial, geometry.pads, strict=True))
    pad_first = padded <= MAX_PADDED_GROWTH * math.prod(spatial)
    if pad_first:
        inputs = pad_spatial(inputs, geometry.pads)
    half = inputs.shape[-1] // 2
    low, high = inputs[..., :half], inputs[..., half:][..., ::-1]
    even, odd = _channel_tables(factors, inputs.dtype)
    u = jnp.matmul(low + high, even, precision=geometry.precision)
    v = jnp.matmul(low - high, odd, precision=geometry.precision)
    if not pad_first:
        u, v = pad_spatial(u, geometry.pads), pad_spatial(v, geometry.pads)
    outputs = geometry.output_spatial(spatial)
    u, v = (shifted_views(x, geometry.size, outputs, geometry.strides) for x in (u, v))
    tables = _position_tables(factors, len(spatial), inputs.dtype)
    return _sum(u_p * even_p + v_p * odd_p for u_p, v_p, even_p, odd_p in zip(u, v, *tables, strict=True))


def transposed_offset_convolution(
    outputs: jax.Array, geometry: Geometry, factors: Factors, spatial: Sequence[int]
) -> jax.Array:
    """Return ``Dᵀ∗outputs``: the gradient of the inputs of :func:`offset_convolution`. ``spatial`` is their shape."""
    outputs = pad_spatial(outputs, geometry.transposed_pads())
    views = shifted_views(outputs, geometry.size, spatial, geometry.strides)
    u, v = (
        _sum(view * weight for view, weight in zip(views, table[::-1], strict=True))
        for table in _position_tables(factors, len(spatial), outputs.dtype)
    )
    even, odd = _channel_tables(factors, outputs.dtype)
    # `einsum`, not a product with a transposed table: the compiler would also store the transposed table.
    transposed_product = partial(jnp.einsum, "...m,cm->...c", precision=geometry.precision)
    if 2 * len(even) <= MAX_WHOLE:
        halves = jnp.concatenate([even, odd], axis=1), jnp.concatenate([even, -odd], axis=1)[::-1]
        return transposed_product(jnp.concatenate([u, v], axis=-1), jnp.concatenate(halves))
    of_even, of_odd = transposed_product(u, even), transposed_product(v, odd)
    return jnp.concatenate([of_even + of_odd, (of_even - of_odd)[..., ::-1]], axis=-1)


def _sum(terms: Iterable[jax.Array]) -> jax.Array:
    first, *others = terms
    return sum(others, first)


def _channel_tables(factors: Factors, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Return the even and the odd channel table, ``[c_in / 2, c_out]``."""
    even, odd = factors.channels()
    return jnp.asarray(even, dtype), jnp.asarray(odd, dtype)


def _position_tables(factors: Factors, rank: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Return the position tables of both terms, ``[positions, 1 (batch), 1 (each spatial dimension), c_out]``."""
    even, odd = (np.expand_dims(table, tuple(range(1, rank + 2))) for table in factors.positions())
    return jnp.asarray(even, dtype), jnp.asarray(odd, dtype)


class FactoredOffset:
    """An :class:`~dctps_jax.ops.offset_part.OffsetPart`: the offset by its factors."""

    @staticmethod
    def is_possible(work: Work) -> bool:
        return work.offset is None or work.factors is not None

    @staticmethod
    def convolve(work: Work, inputs: jax.Array) -> jax.Array:
        return offset_convolution(inputs, work.geometry, _factors(work))

    @staticmethod
    def transposed(work: Work, outputs: jax.Array) -> jax.Array:
        return transposed_offset_convolution(outputs, work.geometry, _factors(work), work.inputs[1:-1])

    @staticmethod
    def cost(work: Work, costs: Costs) -> float:
        products = 2 * work.input_size * work.out_channels * costs.product
        taps = 2 * work.output_size * work.geometry.num_positions * costs.tap
        return products + taps + 6 * work.input_size * costs.move


def _factors(work: Work) -> Factors:
    factors = work.factors
    assert factors is not None
    return factors
