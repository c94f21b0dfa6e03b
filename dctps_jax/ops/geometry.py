"""The geometry of a convolution: kernel shape, strides, padding and groups; and JAX's own convolution of it."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax import lax


def channels_last(ndim: int) -> lax.ConvDimensionNumbers:
    """Return where the axes of inputs, kernel and outputs of a convolution are: channels last, ``ndim`` axes."""
    axes = (0, ndim - 1, *range(1, ndim - 1))
    return lax.ConvDimensionNumbers(axes, (ndim - 1, ndim - 2, *range(ndim - 2)), axes)


class Geometry(NamedTuple):
    """A channels-last convolution without dilation. Without spatial dimensions it is a linear layer.

    ``kernel_shape`` is ``(*size, in_features // groups, out_features)``. ``pads`` has one (low, high) pair for each
    spatial dimension. ``precision`` is passed on to JAX's convolutions and products.
    """

    kernel_shape: tuple[int, ...]
    strides: tuple[int, ...] = ()
    pads: tuple[tuple[int, int], ...] = ()
    groups: int = 1
    precision: Any = None

    @property
    def size(self) -> tuple[int, ...]:
        """The spatial size of the kernel, e.g. (3, 3)."""
        return self.kernel_shape[:-2]

    @property
    def num_positions(self) -> int:
        """The number of positions of the kernel: 9 for a 3×3 kernel."""
        return math.prod(self.size)

    @property
    def largest_stride(self) -> int:
        """The largest stride, 1 for a linear layer."""
        return max(self.strides, default=1)

    def output_spatial(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Return the spatial shape of the outputs for inputs of the shape ``spatial``."""
        zipped = zip(spatial, self.pads, self.size, self.strides, strict=True)
        return tuple(max(0, (length + sum(pair) - width) // stride + 1) for length, pair, width, stride in zipped)

    def transposed_pads(self) -> tuple[tuple[int, int], ...]:
        """Return the padding for the gradient of the inputs, which is a convolution of the outputs' gradient.

        This holds for strides of 1.
        """
        return tuple(
            (width - 1 - low, width - 1 - high) for width, (low, high) in zip(self.size, self.pads, strict=True)
        )


def native_convolution(inputs: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the convolution of ``inputs [batch, *spatial, in]`` with ``kernel``, by JAX's own operation."""
    return lax.conv_general_dilated(
        inputs,
        kernel,
        geometry.strides,
        geometry.pads,
        dimension_numbers=channels_last(inputs.ndim),
        feature_group_count=geometry.groups,
        precision=geometry.precision,
    )
