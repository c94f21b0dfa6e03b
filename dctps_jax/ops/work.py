"""What a layer has to compute, as far as this is known when a program is traced."""

import math
from typing import Any, NamedTuple

import jax

from dctps_jax.offsets import Factors, Offset, Transform
from dctps_jax.ops.geometry import Geometry

# Inputs with at most this many channels are assumed to be images. Training asks for no gradient of images.
IMAGE_CHANNELS = 4


class Work(NamedTuple):
    """The convolution of a layer, the shape of its inputs, its number of trained weights, and its offset or None."""

    geometry: Geometry
    inputs: tuple[int, ...]
    nnz: int
    offset: Offset | None

    @property
    def input_positions(self) -> int:
        """The number of positions of the inputs, of the whole batch."""
        return math.prod(self.inputs[:-1])

    @property
    def output_positions(self) -> int:
        """The number of positions of the outputs, of the whole batch."""
        if not self.geometry.size:
            return self.input_positions
        return self.inputs[0] * math.prod(self.geometry.output_spatial(self.inputs[1:-1]))

    @property
    def in_channels(self) -> int:
        """The number of input channels of all groups."""
        return self.geometry.kernel_shape[-2] * self.geometry.groups

    @property
    def out_channels(self) -> int:
        return self.geometry.kernel_shape[-1]

    @property
    def input_size(self) -> int:
        """The number of numbers in the inputs."""
        return self.input_positions * self.in_channels

    @property
    def output_size(self) -> int:
        """The number of numbers in the outputs."""
        return self.output_positions * self.out_channels

    @property
    def num_weights(self) -> int:
        """The number of weights of the kernel, trained or not."""
        return math.prod(self.geometry.kernel_shape)

    @property
    def multiply_adds(self) -> int:
        """The number of multiply-adds of a convolution with the whole kernel."""
        return self.output_size * self.geometry.num_positions * self.geometry.kernel_shape[-2]

    @property
    def reads_images(self) -> bool:
        return self.in_channels <= IMAGE_CHANNELS

    @property
    def factors(self) -> Factors | None:
        """The factors of the offset, or None without an offset or without factors for this kernel."""
        return None if self.offset is None else self.offset.factors(self.geometry.kernel_shape)

    @property
    def transform(self) -> Transform | None:
        """The fast transform of the offset in a kernel of one position, or None if there is none."""
        if self.offset is None or self.geometry.num_positions > 1 or self.geometry.groups > 1:
            return None
        return self.offset.transform(*self.geometry.kernel_shape[-2:])

    def offset_kernel(self, dtype: Any) -> jax.Array:
        """Return D in the kernel's shape. The layer must have an offset."""
        assert self.offset is not None
        return self.offset.kernel(self.geometry.kernel_shape, dtype)
