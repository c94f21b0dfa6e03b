"""The plan: which method computes a compact layer (:mod:`dctps_jax.execution`), by what it is predicted to cost.

The prediction counts multiply-adds and the numbers that are read and written, each at what it was measured to take on
that platform. It depends on shapes and nnz alone, so that it is made once, when a program is traced.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dctps_jax.convolution import MAX_PATCH_POSITIONS, is_narrow
from dctps_jax.errors import UserError
from dctps_jax.gathered import unfolds
from dctps_jax.geometry import Geometry
from dctps_jax.offsets import Factors, Offset
from dctps_jax.rows import Layout

METHODS = ("plain", "dense", "dense_rows", "factored", "factored_rows")
SETTINGS = ("auto", *METHODS)


class Work(NamedTuple):
    """What a layer has to compute in a step: its convolution, the shape of its inputs, its number of trained weights, its offset."""

    geometry: Geometry
    inputs: tuple[int, ...]
    nnz: int
    offset: Offset | None

    @property
    def input_positions(self) -> int:
        return math.prod(self.inputs[:-1])

    @property
    def output_positions(self) -> int:
        return self.inputs[0] * math.prod(self.geometry.output_spatial(self.inputs[1:-1]))

    @property
    def factors(self) -> Factors | None:
        """The factors of the offset, None where there is none, or it has none."""
        return None if self.offset is None else self.offset.factors(self.geometry.kernel_shape)

    def offset_kernel(self, dtype: Any) -> jax.Array:
        """Return D of the layer's kernel; it must have an offset."""
        assert self.offset is not None
        return self.offset.kernel(self.geometry.kernel_shape, dtype)


class Costs(NamedTuple):
    """What each kind of work takes on a platform, in nanoseconds: of one core of a CPU, or of a whole GPU."""

    product: float  # a multiply-add of a matrix product
    product_gradient: float  # the same, for the gradient of its kernel
    convolution: float  # a multiply-add of a native convolution, forward or to its inputs
    convolution_gradient: float  # the same, for the gradient of its kernel
    narrow: float  # what a multiply-add of a native convolution takes more, times its input channels
    depthwise: float  # a multiply-add of shifted sums
    depthwise_gradient: float  # the same, for the gradient of their kernel
    move: float  # reading or writing a number of an activation
    weight: float  # making a weight of a kernel, or adding up its gradient
    tap: float  # both multiply-adds of the factored offset at one position of the kernel
    pointwise_pair: float  # what a trained weight of a 1×1 kernel sees at one position: gathered, multiplied, added
    pair: float  # the same, of a larger kernel
    large_pair: float  # what either takes more where the gathered arrays leave the caches
    unfold: float  # copying a number of an activation to where a kernel sees it
    row: float  # laying out a number of an activation in rows, or back
    row_pair: float  # adding a number of a row, times a weight, to another row
    inner: float  # a multiply-add of the inner product of two rows
    loop: float  # what a weight takes besides, each time it is gone through
    layer: float
    least_gain: float  # "auto" leaves "plain" for no less than this a layer


# Fitted, by non-negative least squares of relative errors, to the times of `benchmarks/layers.py` for the layers of ResNet50, VGG19,
# MobileNetV2 and Fixup-ResNet20 at densities of 1e-2 to 1e-4 on two cores of an Intel Xeon; `narrow`, `large_pair`, `loop`, `layer` and
# `least_gain` by hand: what saves a millisecond of LeNet's costs as much memory as it saves kernel.
CPU = Costs(
    product=0.0151,
    product_gradient=0.0167,
    convolution=0.0141,
    convolution_gradient=0.0167,
    narrow=0.45,
    depthwise=0.139,
    depthwise_gradient=1.06,
    move=0.483,
    weight=1.03,
    tap=0.34,
    pointwise_pair=2.0,
    pair=2.34,
    large_pair=0.4,
    unfold=1.9,
    row=1.48,
    row_pair=0.178,
    inner=0.369,
    loop=100.0,
    layer=100e3,
    least_gain=1.2e6,
)
# Fitted in the same way to the layers of VGG19 at densities of 1e-2 to 1e-4, 128 images, on an NVIDIA H100 with XLA's default precision (TF32);
# nothing depthwise or narrow was measured, nor weights in rows, which a GPU would take one after the other: these are by hand, and `least_gain`.
GPU = Costs(
    product=5.0e-6,
    product_gradient=5.0e-6,
    convolution=5.0e-6,
    convolution_gradient=5.0e-6,
    narrow=0.0,
    depthwise=5.0e-6,
    depthwise_gradient=5.0e-6,
    move=4.9e-3,
    weight=6.5e-3,
    tap=2.4e-5,
    pointwise_pair=7.2e-3,
    pair=7.2e-3,
    large_pair=0.0,
    unfold=6.3e-3,
    row=6.3e-3,
    row_pair=1e-3,
    inner=1e-3,
    loop=10e3,
    layer=61e3,
    least_gain=30e3,
)
COSTS = {"cpu": CPU, "gpu": GPU}
# From so many gathered numbers on they leave the caches.
LARGE_PAIRS = 4e6
# "auto" leaves "plain" for what is predicted to take a tenth less: predictions of small differences are not to be relied on.
MARGIN = 0.9
# Up to so many channels inputs are taken for images, whose gradient nobody asks for.
IMAGE_CHANNELS = 4
# "auto" gathers at most so many times what it gathers from, besides a kernel's size, of which it makes no gradient: the step is
# not to need more memory than a dense one.
MAX_GATHERED = 3


def possible_methods(work: Work) -> tuple[str, ...]:
    """Return the methods that can compute a layer; "plain" and "dense" always can."""
    geometry = work.geometry
    alone = geometry.groups == max(geometry.strides, default=1) == 1 and work.output_positions > 0
    # Without offset there is nothing to factor: the sparse part alone is the kernel.
    factored = alone and (work.offset is None or work.factors is not None)
    return METHODS if factored else METHODS[:3]


def predicted_seconds(work: Work, method: str, platform: str | None = None) -> float:
    """Return the predicted seconds of a layer's part of a training step, forward and all gradients: of one core of a CPU, or of a GPU.

    ``platform`` is that of this process unless given; a CPU stands in for one that was not measured.
    """
    costs = COSTS.get(platform or jax.default_backend(), CPU)
    geometry = work.geometry
    *_, in_features, out_features = geometry.kernel_shape
    channels, size = in_features * geometry.groups, math.prod(geometry.kernel_shape)
    inputs, outputs = work.input_positions * channels, work.output_positions * out_features
    multiply_adds = outputs * geometry.num_positions * in_features
    if geometry.groups > 1:
        forward, gradient = costs.depthwise, costs.depthwise_gradient
    elif geometry.num_positions == 1 or math.prod(geometry.output_spatial(work.inputs[1:-1])) <= MAX_PATCH_POSITIONS:
        forward, gradient = costs.product, costs.product_gradient
    else:
        narrow = costs.narrow / in_features
        if is_narrow(geometry):
            narrow /= 2
        forward, gradient = costs.convolution + narrow, costs.convolution_gradient + narrow
    nanoseconds = costs.layer + 2 * (inputs + outputs) * costs.move
    images = channels <= IMAGE_CHANNELS
    if method == "plain":
        passes = (1 if images else 2) * forward + gradient
        return 1e-9 * (nanoseconds + multiply_adds * passes + 2 * size * costs.weight)
    products, inner_products = _weight_by_weight(work, method, costs)
    nanoseconds += inner_products
    if method in ("dense", "dense_rows"):
        inner = 2 * min(inputs, outputs) * costs.move if work.offset else 0
        # α's gradient may need that of the inputs.
        passes = (1 if images and (outputs < inputs or not work.offset) else 2) * forward
        return 1e-9 * (nanoseconds + multiply_adds * passes + size * costs.weight + inner)
    nanoseconds += products
    if work.offset:
        matrices = 2 * work.input_positions * channels * out_features * costs.product
        nanoseconds += matrices + 2 * outputs * geometry.num_positions * costs.tap + 6 * inputs * costs.move
    return 1e-9 * nanoseconds


def _weight_by_weight(work: Work, method: str, costs: Costs) -> tuple[float, float]:
    """Return the nanoseconds of the products with the sparse part, forward and to the inputs, and of its values' gradient."""
    geometry, nnz = work.geometry, work.nnz
    *_, in_features, out_features = geometry.kernel_shape
    channels = in_features * geometry.groups
    if method in ("dense_rows", "factored_rows"):
        positions = Layout(geometry, work.inputs).positions
        inputs, outputs = positions * math.prod(geometry.strides) * channels, positions * out_features
        products = costs.row * (2 * inputs + outputs) + 2 * nnz * (positions * costs.row_pair + costs.loop)
        return products, costs.row * (inputs + outputs) + nnz * (positions * costs.inner + costs.loop)
    pairs = work.output_positions * nnz
    pair = costs.pointwise_pair if geometry.num_positions == 1 else costs.pair
    pair += costs.large_pair if pairs > LARGE_PAIRS else 0
    unfolded = 0.0
    if geometry.num_positions > 1 and unfolds(geometry, nnz, channels):
        unfolded = work.output_positions * max(geometry.strides) * geometry.size[-1] * channels * costs.unfold
    return pairs * (pair + (channels + out_features) * costs.product), unfolded + pairs * pair


def is_lean(work: Work) -> bool:
    """Return whether gathering what each trained weight sees keeps to the memory of a dense layer."""
    width = work.geometry.size[-1] if work.geometry.size else 1
    *_, in_features, out_features = work.geometry.kernel_shape
    gathered_from = work.output_positions * (width * in_features * work.geometry.groups + out_features)
    held = MAX_GATHERED * gathered_from + math.prod(work.geometry.kernel_shape)
    return work.output_positions * work.nnz <= held


def choose(setting: str, work: Work, dtype: Any, platform: str | None = None) -> str:
    """Return the method for a layer: that of ``setting`` where it is possible, the predicted best one where it is "auto".

    A method that is not possible is replaced: "factored" by "dense", in rows or not. "auto" keeps to "plain" where there is little to gain, in half
    precision and on a TPU, where no costs were measured; it gathers only where that needs no more memory than a dense layer.

    Raises :class:`~dctps_jax.errors.UserError` for a setting that does not exist.
    """
    if setting not in SETTINGS:
        raise UserError(f"the method is {setting!r}; it must be one of: {', '.join(SETTINGS)}")
    possible = possible_methods(work)
    if setting != "auto":
        return setting if setting in possible else setting.replace("factored", "dense")
    platform = platform or jax.default_backend()
    if platform not in COSTS or jnp.dtype(dtype).itemsize < 4:
        return "plain"
    lean = possible if is_lean(work) else [method for method in possible if method not in ("dense", "factored")]
    seconds = {method: predicted_seconds(work, method, platform) for method in lean}
    best = min(lean, key=lambda method: seconds[method])
    plain = seconds["plain"]
    return best if seconds[best] < min(MARGIN * plain, plain - 1e-9 * COSTS[platform].least_gain) else "plain"
