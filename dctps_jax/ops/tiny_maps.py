"""Convolutions of maps that are smaller than the kernel's window, on a TPU.

For these convolutions its compiler (libtpu 0.0.42) exchanges kernel and images. It first reverses the kernel along its
window and stores the result. For 3×3×512×512 in bfloat16 it estimates 61,600 cycles for that, five times as many as for
the convolution of 128 maps of 2×2. Here kernel, maps and outputs are mirrored. The two reversals of the kernel cancel,
and the reversals of the small maps are cheap. ``tests/ops/test_tiny_maps.py`` compiles both.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dctps_jax.ops.geometry import Geometry, native_convolution
from dctps_jax.ops.target import platform

# Reversing a smaller kernel takes less time than reversing the maps.
MIN_CHANNELS_PRODUCT = 256 * 256


def is_taken(inputs: jax.Array | jax.ShapeDtypeStruct, geometry: Geometry) -> bool:
    """Return whether :func:`convolve` is faster than the native convolution."""
    spatial = inputs.shape[1:-1]
    return (
        platform() == "tpu"
        and bool(geometry.size)
        and geometry.groups == geometry.largest_stride == 1
        and math.prod(geometry.kernel_shape[-2:]) >= MIN_CHANNELS_PRODUCT
        and all(length < width for length, width in zip(spatial, geometry.size, strict=True))
        and min(geometry.output_spatial(spatial)) >= 1
    )


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def convolve(inputs: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the convolution of ``inputs [batch, *spatial, in]`` with ``kernel``."""
    spatial = range(1, inputs.ndim - 1)
    mirrored = geometry._replace(pads=tuple(pair[::-1] for pair in geometry.pads))
    kernel = jnp.flip(kernel, range(kernel.ndim - 2))
    return jnp.flip(native_convolution(jnp.flip(inputs, spatial), kernel, mirrored), spatial)


@convolve.defjvp
def _jvp(geometry: Geometry, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """Use the derivatives of the native convolution: JAX's gradient of the inputs reverses the kernel anyway."""
    inputs, kernel = primals
    moved = native_convolution(tangents[0], kernel, geometry) + native_convolution(inputs, tangents[1], geometry)
    return convolve(inputs, kernel, geometry), moved
