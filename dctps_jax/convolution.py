"""Convolutions with a given kernel; on a CPU those that XLA computes slowly as matrix products and shifted sums.

Same function and gradients as ``lax.conv_general_dilated``, to rounding. On a CPU the weight gradient of a 1×1 convolution
is copied around by it, maps smaller than the kernel and depthwise kernels leave its fast path altogether; forward and both
gradients then take 2 to 50 times as long. On GPU and TPU the native operation is always taken.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dctps_jax.geometry import Geometry

# Up to so many output positions an image, a gathered patch matrix is small and its product fast.
MAX_PATCH_POSITIONS = 4


def convolve(inputs: jax.Array, kernel: jax.Array, geometry: Geometry, out_sharding: Any = None) -> jax.Array:
    """Return the convolution of ``inputs [batch, *spatial, in]`` with ``kernel``, or ``inputs @ kernel`` of a linear layer."""
    if not geometry.size:
        return jnp.matmul(inputs, kernel, precision=geometry.precision)
    if jax.default_backend() == "cpu" and out_sharding is None and inputs.size:
        outputs = _fast_convolution(inputs, kernel, geometry)
        if outputs is not None:
            return outputs
    channels_last = (0, inputs.ndim - 1, *range(1, inputs.ndim - 1))
    return lax.conv_general_dilated(
        inputs,
        kernel,
        geometry.strides,
        geometry.pads,
        dimension_numbers=lax.ConvDimensionNumbers(
            channels_last, (inputs.ndim - 1, inputs.ndim - 2, *range(inputs.ndim - 2)), channels_last
        ),
        feature_group_count=geometry.groups,
        precision=geometry.precision,
        out_sharding=out_sharding,
    )


def _fast_convolution(inputs: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array | None:
    """Return the convolution, or None where the native operation is the faster one."""
    channels, strides, groups = inputs.shape[-1], geometry.strides, geometry.groups
    if geometry.num_positions == 1 and groups == 1:
        return _pointwise(_strided(pad_spatial(inputs, geometry.pads), strides), kernel, geometry.precision)
    outputs = geometry.output_spatial(inputs.shape[1:-1])
    if min(outputs) < 1:
        return None
    if groups == channels == kernel.shape[-1] > 1:
        views = shifted_views(pad_spatial(inputs, geometry.pads), geometry.size, outputs, strides)
        taps = kernel.reshape(-1, *(1,) * (inputs.ndim - 1), channels)
        return sum((view * tap for view, tap in zip(views[1:], taps[1:], strict=True)), views[0] * taps[0])
    if math.prod(outputs) <= MAX_PATCH_POSITIONS and groups == 1:
        views = shifted_views(pad_spatial(inputs, geometry.pads), geometry.size, outputs, strides)
        return _pointwise(jnp.concatenate(views, axis=-1), kernel, geometry.precision)
    return None


def _pointwise(inputs: jax.Array, kernel: jax.Array, precision: Any) -> jax.Array:
    """Multiply the channels of each position by the kernel, all its rows flattened."""
    rows = inputs.reshape(-1, inputs.shape[-1])
    product = jnp.matmul(rows, kernel.reshape(-1, kernel.shape[-1]), precision=precision)
    return product.reshape(*inputs.shape[:-1], kernel.shape[-1])


def _strided(inputs: jax.Array, strides: Sequence[int]) -> jax.Array:
    return inputs[:, *(slice(None, None, stride) for stride in strides)]


def pad_spatial(inputs: jax.Array, pads: Sequence[tuple[int, int]]) -> jax.Array:
    """Pad the spatial dimensions of ``inputs [batch, *spatial, channels]`` by zeros."""
    if not any(low or high for low, high in pads):
        return inputs
    # lax.pad, unlike jnp.pad, crops where a padding is negative, as a convolution does.
    return lax.pad(inputs, jnp.zeros((), inputs.dtype), [(0, 0, 0), *((*pair, 0) for pair in pads), (0, 0, 0)])


def shifted_views(
    inputs: jax.Array, size: Sequence[int], outputs: Sequence[int], strides: Sequence[int]
) -> list[jax.Array]:
    """Return, for each position of a kernel in C order, the inputs under it: arrays ``[batch, *outputs, channels]``."""
    views = []
    for offsets in itertools.product(*map(range, size)):
        view = [
            slice(offset, offset + (count - 1) * stride + 1, stride)
            for offset, count, stride in zip(offsets, outputs, strides, strict=True)
        ]
        views.append(inputs[:, *view])
    return views
