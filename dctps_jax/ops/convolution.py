"""Convolutions with a given kernel. On a CPU some are computed as matrix products and shifted sums.

The functions and gradients equal those of ``lax.conv_general_dilated`` up to rounding. On a CPU, XLA (JAX 0.10.2)
computes some convolutions slowly. It copies the weight gradient of a 1×1 convolution around. Maps smaller than the
kernel, and depthwise kernels, do not take its fast path. Forward pass and gradients then take 2 to 50 times as long. A
GPU always gets the native operation. So does a TPU, except for :mod:`~dctps_jax.ops.tiny_maps`.

``tests/ops/test_convolution.py`` shows which convolutions are native; ``benchmarks/layers.py`` times them.
"""

import math
from collections.abc import Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dctps_jax.ops import depthwise, tiny_maps
from dctps_jax.ops.costs import Costs
from dctps_jax.ops.fusion import varying_alike
from dctps_jax.ops.geometry import Geometry, native_convolution
from dctps_jax.ops.target import on_cpu
from dctps_jax.ops.views import pad_spatial, shifted_views
from dctps_jax.ops.work import Work

# Up to this many output positions an image, the matrix of patches is small and its product is fast.
MAX_PATCH_POSITIONS = 4
# With fewer channels than NARROW, a vector register is not full if one position is computed at a time. The other side
# may have more channels, up to MAX_NARROW_WEIGHTS weights at a position.
NARROW, MAX_NARROW_WEIGHTS = 8, 128

# True while the body of a loop is traced.
in_loop: ContextVar[bool] = ContextVar("in_loop", default=False)


def convolve(inputs: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the convolution of ``inputs [batch, *spatial, in]`` with ``kernel``, or ``inputs @ kernel``."""
    looped = in_loop.get() and _has_gradients_of_one_layout(inputs, geometry)
    if looped or depthwise.is_taken(inputs, geometry):
        return _with_manual_gradients(geometry, *varying_alike(inputs, kernel))
    if tiny_maps.is_taken(inputs, geometry):
        return tiny_maps.convolve(inputs, kernel, geometry)
    if _transposes_outputs(inputs, geometry):
        kernel = _with_transposed_gradient(kernel)
    return plain_convolution(inputs, kernel, geometry)


def plain_convolution(inputs: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Return the same as :func:`convolve`, without its gradients by hand."""
    if not geometry.size:
        return jnp.matmul(inputs, kernel, precision=geometry.precision)
    if on_cpu() and inputs.size:
        outputs = _fast_convolution(inputs, kernel, geometry)
        if outputs is not None:
            return outputs
    return native_convolution(inputs, kernel, geometry)


def gradient_of_inputs(
    gradient: jax.Array, kernel: jax.Array, geometry: Geometry, inputs: jax.Array | jax.ShapeDtypeStruct
) -> jax.Array:
    """Return the gradient of ``inputs`` for the ``gradient`` of the outputs: the transpose of the convolution."""
    if _has_gradients_of_one_layout(inputs, geometry):
        back = geometry._replace(
            kernel_shape=(*geometry.size, *geometry.kernel_shape[:-3:-1]), pads=geometry.transposed_pads()
        )
        return plain_convolution(gradient, jnp.flip(kernel, range(len(geometry.size))).swapaxes(-1, -2), back)
    if depthwise.is_taken(inputs, geometry):
        return depthwise.gradient_of_inputs(gradient, kernel, geometry, inputs)
    return jax.linear_transpose(lambda x: plain_convolution(x, kernel, geometry), inputs)(gradient)[0]


def _fast_convolution(inputs: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array | None:
    """Return the convolution, or None if the native operation is faster."""
    if geometry.num_positions == 1 and geometry.groups == 1:
        return _pointwise(_strided(pad_spatial(inputs, geometry.pads), geometry.strides), kernel, geometry.precision)
    outputs = geometry.output_spatial(inputs.shape[1:-1])
    if min(outputs) < 1:
        return None
    if depthwise.is_taken(inputs, geometry):
        return depthwise.convolve(inputs, kernel, geometry)
    if _is_small_map(outputs) and geometry.groups == 1:
        views = shifted_views(pad_spatial(inputs, geometry.pads), geometry.size, outputs, geometry.strides)
        return _pointwise(jnp.concatenate(views, axis=-1), kernel, geometry.precision)
    return _narrow_convolution(inputs, kernel, geometry)


def _narrow_convolution(inputs: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array | None:
    """Return a convolution of few channels, several columns at a time; None if there are more channels.

    The columns that are computed together become output channels. The kernel of each column is shifted to its inputs.
    """
    out_features = kernel.shape[-1]
    outputs = geometry.output_spatial(inputs.shape[1:-1])
    columns = next((count for count in (4, 2) if outputs[-1] % count == 0), 1)
    if not is_narrow(geometry) or columns == 1:
        return None
    no_padding = [(0, 0, 0)]
    shifted = [
        lax.pad(
            kernel,
            jnp.zeros((), kernel.dtype),
            no_padding * (kernel.ndim - 3) + [(column, columns - 1 - column, 0)] + no_padding * 2,
        )
        for column in range(columns)
    ]
    together = jnp.concatenate(shifted, axis=-1)
    strides = (*geometry.strides[:-1], columns)
    wide = plain_convolution(
        inputs, together, Geometry(together.shape, strides, geometry.pads, precision=geometry.precision)
    )
    return wide.reshape(*wide.shape[:-2], outputs[-1], out_features)


def cost_of_multiply_add(work: Work, costs: Costs) -> tuple[float, float]:
    """Return the nanoseconds of a multiply-add of the convolution or its input gradient, and of its kernel gradient.

    They approximate the branches of :func:`_fast_convolution` and the native convolution. Every grouped convolution
    counts as depthwise. On a GPU the branches that only a CPU takes cost the same as the native convolution.
    """
    geometry = work.geometry
    if geometry.groups > 1:
        return costs.depthwise, costs.depthwise_gradient
    if geometry.num_positions == 1 or _is_small_map(geometry.output_spatial(work.inputs[1:-1])):
        return costs.product, costs.product_gradient
    narrow = costs.narrow / work.in_channels
    if is_narrow(geometry):
        narrow /= 2
    return costs.convolution + narrow, costs.convolution_gradient + narrow


def is_narrow(geometry: Geometry) -> bool:
    """Return whether a convolution has so few channels that several columns are computed at a time."""
    *_, in_features, out_features = geometry.kernel_shape
    few = min(in_features, out_features) < NARROW and in_features * out_features <= MAX_NARROW_WEIGHTS
    return few and geometry.groups == max(geometry.strides) == 1


def _is_small_map(outputs: Sequence[int]) -> bool:
    """Return whether there are so few output positions that patches are gathered."""
    return math.prod(outputs) <= MAX_PATCH_POSITIONS


def _has_gradients_of_one_layout(inputs: jax.Array | jax.ShapeDtypeStruct, geometry: Geometry) -> bool:
    """Return whether the gradients can be convolutions in the one layout that XLA computes fast on a CPU.

    JAX's own gradients have other layouts. XLA (JAX 0.10.2) converts them to the fast layout, except inside a loop,
    where it computes them number by number (https://github.com/jax-ml/jax/issues/12868).
    ``tests/models/test_blocks.py`` runs blocks in a loop.
    """
    if not on_cpu() or not geometry.size or not inputs.size or geometry.groups > 1:
        return False
    outputs = geometry.output_spatial(inputs.shape[1:-1])
    return (
        geometry.num_positions > 1 and max(geometry.strides) == 1 and min(outputs) >= 1 and not _is_small_map(outputs)
    )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _with_manual_gradients(geometry: Geometry, inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    return plain_convolution(inputs, kernel, geometry)


def _forward(geometry: Geometry, inputs: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return plain_convolution(inputs, kernel, geometry), (inputs, kernel)


def _backward(
    geometry: Geometry, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    inputs, kernel = residuals
    grad_inputs = gradient_of_inputs(gradient, kernel, geometry, inputs)
    if geometry.groups > 1:
        return grad_inputs, depthwise.gradient_of_kernel(gradient, inputs, geometry)
    # A convolution over the batch: channels play the part of images, images that of channels, and the outputs' gradient
    # that of the kernel.
    images, filters = jnp.swapaxes(inputs, 0, -1), jnp.moveaxis(gradient, 0, -2)
    over = Geometry(filters.shape, geometry.strides, geometry.pads, precision=geometry.precision)
    return grad_inputs, jnp.moveaxis(plain_convolution(images, filters, over), 0, -2)


_with_manual_gradients.defvjp(_forward, _backward)


def _pointwise(inputs: jax.Array, kernel: jax.Array, precision: Any) -> jax.Array:
    """Multiply the channels of each position by the kernel with all its rows flattened."""
    rows = inputs.reshape(-1, inputs.shape[-1])
    product = jnp.matmul(rows, kernel.reshape(-1, kernel.shape[-1]), precision=precision)
    return product.reshape(*inputs.shape[:-1], kernel.shape[-1])


def _transposes_outputs(inputs: jax.Array, geometry: Geometry) -> bool:
    """Return whether the product for the kernel's gradient transposes the outputs' gradient, not the inputs.

    XLA (JAX 0.10.2) computes ``∂K = Xᵀ·∂Y`` by transposing X, which is slow if X has more features than ∂Y. ``∂Kᵀ =
    ∂Yᵀ·X`` took 0.6 times as long for 256 and 64 features, and for 1,024 and 256. With few rows, the transposition of
    ∂Kᵀ afterwards costs more than it saves. A number of rows that is a symbol of ``jax.export`` is not compared.
    """
    if not on_cpu() or geometry.groups > 1 or not inputs.size:
        return False
    rows, in_features = math.prod(inputs.shape[:-1]), math.prod(geometry.kernel_shape[:-1])
    if geometry.size:
        outputs = geometry.output_spatial(inputs.shape[1:-1])
        if geometry.num_positions > 1 and not _is_small_map(outputs):
            return False
        rows = inputs.shape[0] * math.prod(outputs)
    return isinstance(rows, int) and rows >= in_features > geometry.kernel_shape[-1]


@jax.custom_jvp
def _with_transposed_gradient(kernel: jax.Array) -> jax.Array:
    """Return ``kernel``. The product that computes its gradient has its factors exchanged, and is then transposed."""
    return kernel


@_with_transposed_gradient.defjvp
def _transposed_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (kernel,), (tangent,) = primals, tangents
    # The barrier keeps XLA from exchanging the factors again.
    flat = lax.optimization_barrier(tangent.reshape(-1, kernel.shape[-1]).T)
    return _with_transposed_gradient(kernel), flat.T.reshape(kernel.shape)


def _strided(inputs: jax.Array, strides: Sequence[int]) -> jax.Array:
    return inputs[:, *(slice(None, None, stride) for stride in strides)]
