"""What a convolution is besides its numbers."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple


class Geometry(NamedTuple):
    """A channels-last convolution without dilation; without spatial dimensions it is a linear layer.

    ``kernel_shape`` is ``(*size, in_features // groups, out_features)``, ``pads`` one (low, high) pair a spatial dimension.
    """

    kernel_shape: tuple[int, ...]
    strides: tuple[int, ...] = ()
    pads: tuple[tuple[int, int], ...] = ()
    groups: int = 1
    precision: Any = None

    @property
    def size(self) -> tuple[int, ...]:
        return self.kernel_shape[:-2]

    @property
    def num_positions(self) -> int:
        """The number of positions of the kernel: 9 of a 3×3 one."""
        return math.prod(self.size)

    def output_spatial(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Return the spatial shape of the outputs for that of the inputs."""
        zipped = zip(spatial, self.pads, self.size, self.strides, strict=True)
        return tuple(max(0, (length + sum(pair) - width) // stride + 1) for length, pair, width, stride in zipped)

    def transposed_pads(self) -> tuple[tuple[int, int], ...]:
        """Return the padding of the outputs' gradient under which the inputs' gradient is a convolution (strides of 1)."""
        return tuple(
            (width - 1 - low, width - 1 - high) for width, (low, high) in zip(self.size, self.pads, strict=True)
        )
