"""The offset of a linear layer or a 1×1 convolution by its fast transform: about ``N log2 N`` operations a position.

A matrix product takes ``2 c_in c_out`` operations. N is ``max(c_in, c_out)``.
"""

import math

import jax

from dctps_jax.offsets import Transform
from dctps_jax.ops.costs import Costs
from dctps_jax.ops.views import pad_spatial
from dctps_jax.ops.work import Work


class TransformedOffset:
    """An :class:`~dctps_jax.ops.offset_part.OffsetPart`: the offset by its fast transform, which it must have."""

    @staticmethod
    def is_possible(work: Work) -> bool:
        return work.transform is not None

    @staticmethod
    def convolve(work: Work, inputs: jax.Array) -> jax.Array:
        return _transform(work).product(pad_spatial(inputs, work.geometry.pads))

    @staticmethod
    def transposed(work: Work, outputs: jax.Array) -> jax.Array:
        return _transform(work).transposed(pad_spatial(outputs, work.geometry.transposed_pads()))

    @staticmethod
    def cost(work: Work, costs: Costs) -> float:
        length = _transform(work).length
        transforms = 2 * work.output_positions * length * math.log2(length) * costs.transform
        return transforms + 2 * (work.input_size + work.output_size) * costs.move


def _transform(work: Work) -> Transform:
    transform = work.transform
    assert transform is not None
    return transform
