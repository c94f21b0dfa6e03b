"""Depthwise convolutions on a CPU: sums of shifted inputs, each times its position of the kernel.

The native operation is slow on a CPU (https://github.com/jax-ml/jax/issues/23713).
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from dctps_jax.ops.geometry import Geometry
from dctps_jax.ops.target import on_cpu
from dctps_jax.ops.views import pad_spatial, shifted_views

# The kernel's gradient is summed in blocks of images. A block has at most this many numbers of the outputs' gradient,
# so that they fit into a cache.
BLOCK = 2**19
# The positions of a block are divided into this many parts, which are added first. More parts are faster to sum and
# slower to compile: a large kernel has fewer parts, so that there are about MAX_PRODUCTS products in all.
MAX_PARTS = 16
MAX_PRODUCTS = 144


def is_taken(inputs: jax.Array | jax.ShapeDtypeStruct, geometry: Geometry) -> bool:
    """Return whether a convolution is depthwise and is computed here."""
    return (
        on_cpu()
        and bool(geometry.size)
        and geometry.groups == inputs.shape[-1] == geometry.kernel_shape[-1] > 1
        and inputs.size > 0
        and min(geometry.output_spatial(inputs.shape[1:-1])) >= 1
    )


def convolve(inputs: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the convolution of ``inputs [batch, *spatial, channels]`` with ``kernel [*size, 1, channels]``."""
    outputs = geometry.output_spatial(inputs.shape[1:-1])
    views = shifted_views(pad_spatial(inputs, geometry.pads), geometry.size, outputs, geometry.strides)
    return _shifted_sum(views, kernel)


def gradient_of_inputs(
    gradient: jax.Array, kernel: jax.Array, geometry: Geometry, inputs: jax.Array | jax.ShapeDtypeStruct
) -> jax.Array:
    """Return the gradient of ``inputs`` for the ``gradient`` of the outputs: a sum of shifted outputs.

    JAX's transpose of the convolution would pad each term separately.
    """
    spatial, zero = inputs.shape[1:-1], jnp.zeros((), gradient.dtype)
    widths = [
        (width - 1 - low, length + low - 1 - (count - 1) * stride, stride - 1)
        for width, (low, _), length, count, stride in zip(
            geometry.size, geometry.pads, spatial, gradient.shape[1:-1], geometry.strides, strict=True
        )
    ]
    spread = lax.pad(gradient, zero, [(0, 0, 0), *widths, (0, 0, 0)])
    flipped = jnp.flip(kernel, range(len(geometry.size)))
    return _shifted_sum(shifted_views(spread, geometry.size, spatial, (1,) * len(spatial)), flipped)


def gradient_of_kernel(gradient: jax.Array, inputs: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the gradient of the kernel for the ``gradient`` of the outputs: a sum over images and positions.

    XLA sums channel by channel, which jumps through the memory. So parts of the positions are added first: that reads
    all channels in the order of memory. A batch that XLA itself shards over several CPU devices is gathered for it.
    """
    batch, *outputs, channels = gradient.shape
    parts = list(_parts(outputs, min(MAX_PARTS, max(2, MAX_PRODUCTS // geometry.num_positions))))
    wide = jnp.promote_types(gradient.dtype, jnp.float32)

    def sum_images(inputs: jax.Array, gradient: jax.Array) -> jax.Array:
        views = shifted_views(inputs, geometry.size, outputs, geometry.strides)
        # Stacked before they are summed: XLA would fuse the sum of a single view with the additions, and would sum
        # channel by channel again.
        sums = jnp.stack([add_parts(view, gradient) for view in views])
        return jnp.sum(sums, axis=range(1, gradient.ndim))

    def sum_block(start: jax.Array) -> jax.Array:
        return sum_images(*(lax.dynamic_slice_in_dim(array, start, images) for array in (padded, gradient)))

    def add_parts(view: jax.Array, gradient: jax.Array) -> jax.Array:
        # Products of slices are computed in one pass, slices of a product in several.
        return functools.reduce(jnp.add, (view[:, *part].astype(wide) * gradient[:, *part] for part in parts))

    padded = pad_spatial(inputs, geometry.pads)
    if isinstance(batch, int):
        images = _largest_divisor(batch, BLOCK // math.prod(gradient.shape[1:]))
        sums = jnp.sum(lax.map(sum_block, jnp.arange(0, batch, images)), axis=0)
    else:  # a symbol of jax.export
        sums = sum_images(padded, gradient)
    return sums.reshape(*geometry.size, 1, channels).astype(gradient.dtype)


def _parts(outputs: Sequence[int], limit: int) -> Iterator[tuple[slice, ...]]:
    """Return up to ``limit`` equal parts of the positions, as slices."""
    left, parts = limit, []
    for count in outputs:
        number = _largest_divisor(count, left)
        left //= number
        length = count // number
        parts.append([slice(start, start + length) for start in range(0, count, length)])
    return itertools.product(*parts)


def _largest_divisor(number: int, limit: int) -> int:
    """Return the largest divisor of ``number`` up to ``limit``, at least 1."""
    return next(divisor for divisor in range(max(1, min(number, limit)), 0, -1) if number % divisor == 0)


def _shifted_sum(views: Sequence[jax.Array], kernel: jax.Array) -> jax.Array:
    """Return the sum of the views, each times its position of the kernel."""
    taps = kernel.reshape(-1, *(1,) * (views[0].ndim - 1), kernel.shape[-1])
    return sum((view * tap for view, tap in zip(views[1:], taps[1:], strict=True)), views[0] * taps[0])
