"""Convolutions that XLA's CPU backend computes slowly, as matrix products and shifted sums; the rest is left to it.

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

# Up to so many output positions an image, a gathered patch matrix is small and its product fast.
MAX_PATCH_POSITIONS = 4

Pairs = Sequence[tuple[int, int]]


def fast_convolution(
    inputs: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: str | Pairs, groups: int, precision: Any
) -> jax.Array | None:
    """Return the convolution of ``inputs [batch, *spatial, in]`` with ``kernel [*size, in / groups, out]``.

    None where the native operation is the faster one, or the platform is no CPU.
    """
    if jax.default_backend() != "cpu" or inputs.size == 0:
        return None
    size, channels = kernel.shape[:-2], inputs.shape[-1]
    spatial = inputs.shape[1:-1]
    pairs = lax.padtype_to_pads(spatial, size, strides, padding) if isinstance(padding, str) else padding
    if math.prod(size) == 1 and groups == 1:
        return _pointwise(_strided(_padded(inputs, pairs), strides), kernel, precision)
    outputs = [
        (length + sum(pair) - width) // stride + 1
        for length, pair, width, stride in zip(spatial, pairs, size, strides, strict=True)
    ]
    if min(outputs) < 1:
        return None
    if groups == channels == kernel.shape[-1] > 1:
        windows = _windows(_padded(inputs, pairs), size, outputs, strides)
        taps = kernel.reshape(-1, *(1,) * (inputs.ndim - 1), channels)
        return sum((window * tap for window, tap in zip(windows[1:], taps[1:], strict=True)), windows[0] * taps[0])
    if math.prod(outputs) <= MAX_PATCH_POSITIONS and groups == 1:
        patches = jnp.concatenate(_windows(_padded(inputs, pairs), size, outputs, strides), axis=-1)
        return _pointwise(patches, kernel, precision)
    return None


def _pointwise(inputs: jax.Array, kernel: jax.Array, precision: Any) -> jax.Array:
    """Multiply the channels of each position by the kernel, all its rows flattened."""
    rows = inputs.reshape(-1, inputs.shape[-1])
    product = jnp.matmul(rows, kernel.reshape(-1, kernel.shape[-1]), precision=precision)
    return product.reshape(*inputs.shape[:-1], kernel.shape[-1])


def _padded(inputs: jax.Array, pairs: Pairs) -> jax.Array:
    if not any(low or high for low, high in pairs):
        return inputs
    # lax.pad, unlike jnp.pad, crops where a padding is negative, as a convolution does.
    return lax.pad(inputs, jnp.zeros((), inputs.dtype), [(0, 0, 0), *((*pair, 0) for pair in pairs), (0, 0, 0)])


def _strided(inputs: jax.Array, strides: Sequence[int]) -> jax.Array:
    return inputs[:, *(slice(None, None, stride) for stride in strides)]


def _windows(inputs: jax.Array, size: Sequence[int], outputs: Sequence[int], strides: Sequence[int]) -> list[jax.Array]:
    """Return, for each position of a kernel in C order, the inputs under it: arrays ``[batch, *outputs, channels]``."""
    windows = []
    for offsets in itertools.product(*map(range, size)):
        window = [
            slice(offset, offset + (count - 1) * stride + 1, stride)
            for offset, count, stride in zip(offsets, outputs, strides, strict=True)
        ]
        windows.append(inputs[:, *window])
    return windows
