"""The plan: which method computes a compact layer (:mod:`dctps_jax.execution`), by what it is predicted to cost.

The prediction counts multiply-adds and the numbers that are read and written, each at what it was measured to take on
that platform. It depends on shapes and nnz alone, so that it is made once, when a program is traced.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dctps_jax.convolution import MAX_PATCH_POSITIONS
from dctps_jax.errors import UserError
from dctps_jax.factored import can_factor
from dctps_jax.geometry import Geometry

METHODS = ("plain", "dense", "factored")
SETTINGS = ("auto", *METHODS)


class Work(NamedTuple):
    """What a layer has to compute in a step: its convolution, the shape of its inputs and its number of trained weights."""

    geometry: Geometry
    inputs: tuple[int, ...]
    nnz: int
    offset: bool

    @property
    def input_positions(self) -> int:
        return math.prod(self.inputs[:-1])

    @property
    def output_positions(self) -> int:
        return self.inputs[0] * math.prod(self.geometry.output_spatial(self.inputs[1:-1]))


class Costs(NamedTuple):
    """Nanoseconds of one core, each measured with the others' work going on beside it."""

    product: float  # a multiply-add of a matrix product
    convolution: float  # a multiply-add of a native convolution, forward or to the inputs
    kernel_gradient: (
        float  # a multiply-add of a native convolution's kernel gradient, what is copied around it included
    )
    product_gradient: float  # the same of a 1×1 convolution or linear layer
    depthwise: float  # a multiply-add of a depthwise convolution by shifted sums
    tap: float  # the two multiply-adds of one position of the kernel in the factored offset
    move: float  # reading or writing one number of an activation
    gather: float  # gathering one channel at one position
    shift: float  # choosing the shift of a gathered channel at one position
    weight: float  # making one weight of a kernel


CPU = Costs(
    product=2 / 75,
    convolution=2 / 90,
    kernel_gradient=2 / 50,
    product_gradient=2 / 45,
    depthwise=0.3,
    tap=0.2,
    move=0.15,
    gather=0.45,
    shift=0.7,
    weight=2.5,
)


def possible_methods(work: Work) -> tuple[str, ...]:
    """Return the methods that can compute a layer; "plain" and "dense" always can."""
    geometry = work.geometry
    # Without offset there is nothing to factor: the sparse part alone is the kernel.
    factored = can_factor(geometry) if work.offset else geometry.groups == max(geometry.strides, default=1) == 1
    return METHODS if factored else METHODS[:2]


def predicted_seconds(work: Work, method: str, costs: Costs = CPU) -> float:
    """Return the predicted seconds of one core for a layer's part of a training step."""
    geometry, nnz = work.geometry, work.nnz
    rows, cols = work.input_positions, work.output_positions
    *_, in_features, out_features = geometry.kernel_shape
    channels = in_features * geometry.groups
    multiply_adds = cols * geometry.num_positions * in_features * out_features
    size = math.prod(geometry.kernel_shape)
    see = nnz * (costs.gather + (costs.shift if geometry.num_positions > 1 else 0))
    pick = nnz * (costs.gather + 2 * costs.move)
    if method == "factored":
        sparse = cols * (2 * see + pick + nnz * (channels + out_features) * costs.product)
        if not work.offset:
            return 1e-9 * sparse
        taps = 2 * cols * out_features * geometry.num_positions * costs.tap
        folds = 6 * rows * channels * costs.move
        return 1e-9 * (2 * rows * channels * out_features * costs.product + taps + folds + sparse)
    if geometry.groups > 1:
        forward, gradient = costs.depthwise, costs.depthwise
    elif geometry.num_positions == 1 or math.prod(geometry.output_spatial(work.inputs[1:-1])) <= MAX_PATCH_POSITIONS:
        forward, gradient = costs.product, costs.product_gradient
    else:
        forward, gradient = costs.convolution, costs.kernel_gradient
    total = 2 * multiply_adds * forward + size * costs.weight
    if method == "plain":
        return 1e-9 * (total + multiply_adds * gradient + size * costs.weight)
    inner = 2 * min(rows * channels, cols * out_features) * costs.move if work.offset else 0
    return 1e-9 * (total + cols * (see + pick) + inner)


def choose(setting: str, work: Work, dtype: Any, platform: str | None = None) -> str:
    """Return the method for a layer: that of ``setting`` where it is possible, the predicted best one where it is "auto".

    A method that is not possible is replaced by the next one before it: "factored" by "dense". On GPU and TPU, which the
    costs were not measured on, and in half precision "auto" is "plain".
    """
    if setting not in SETTINGS:
        raise UserError(f"the method is {setting!r}; it must be one of: {', '.join(SETTINGS)}")
    possible = possible_methods(work)
    if setting == "auto":
        measured = (platform or jax.default_backend()) == "cpu" and jnp.dtype(dtype).itemsize >= 4
        method = min(possible, key=lambda method: predicted_seconds(work, method)) if measured else "plain"
    else:
        method = setting if setting in possible else "dense"
    return method
