"""``K = α·D + S`` in place of ``nnx.ConvTranspose``."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn import dtypes
from jax import lax

from dctps_jax.arguments import check_inputs, check_size
from dctps_jax.conv_arguments import checked_kernel_size, checked_padding, per_dimension
from dctps_jax.kernels import KernelLayer
from dctps_jax.layers import DEFAULT_KERNEL_INIT, has_symbol
from dctps_jax.offsets import Offset
from dctps_jax.ops.geometry import Geometry, channels_last
from dctps_jax.partitioning import unwrapped
from dctps_jax.stacks import check_one_layer

PADDINGS = ("SAME", "VALID", "CIRCULAR")


class DCTpSConvTranspose(KernelLayer):
    """Transposed convolution with ``K = α·D + S``; a drop-in for ``nnx.ConvTranspose``.

    It has all arguments of ``nnx.ConvTranspose`` under their names. ``offset``, ``alpha_init``, ``alpha_trainable``,
    ``kernel_init``, ``mask`` and ``support`` are as in :class:`~dctps_jax.DCTpSConv`.

    The layer is a convolution of inputs with ``strides - 1`` zeros between their pixels. Its kernel is the kernel of
    this convolution, ``(*kernel_size, in_features, out_features)``, also with ``transpose_kernel``. With that argument
    ``nnx.ConvTranspose`` stores the kernel mirrored and with its last two axes swapped.

    Raises :class:`~dctps_jax.errors.UserError` for a padding that ``nnx.ConvTranspose`` does not know.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = None,
        *,
        padding: str | int | Sequence[int | tuple[int, int]] = "SAME",
        kernel_dilation: int | Sequence[int] | None = None,
        use_bias: bool = True,
        mask: jax.Array | None = None,
        support: jax.Array | np.ndarray | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        precision: lax.PrecisionLike = None,
        kernel_init: nnx.Initializer = DEFAULT_KERNEL_INIT,
        bias_init: nnx.Initializer = nnx.initializers.zeros,
        transpose_kernel: bool = False,
        promote_dtype: Any = dtypes.promote_dtype,
        preferred_element_type: Any = None,
        offset: str | Offset | None = "dct",
        alpha_init: float = 1.0,
        alpha_trainable: bool = True,
        rngs: nnx.Rngs,
        kernel_metadata: Mapping[str, Any] = MappingProxyType({}),
        bias_metadata: Mapping[str, Any] = MappingProxyType({}),
    ):
        check_size(in_features=in_features, out_features=out_features)
        self.in_features = in_features
        self.out_features = out_features
        self.kernel_size = checked_kernel_size(kernel_size)
        rank = len(self.kernel_size)
        self.strides = per_dimension("strides", strides, rank)
        self.padding = checked_padding(padding, rank, PADDINGS)
        self.kernel_dilation = per_dimension("kernel_dilation", kernel_dilation, rank)
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.precision = precision
        self.transpose_kernel = transpose_kernel
        self.promote_dtype = promote_dtype
        self.preferred_element_type = preferred_element_type
        self._init_parameters(
            kernel_shape_of(self),
            offset=offset,
            alpha_init=alpha_init,
            alpha_trainable=alpha_trainable,
            mask=mask,
            support=support,
            use_bias=use_bias,
            param_dtype=param_dtype,
            kernel_init=self._initializer(kernel_init),
            bias_init=bias_init,
            rngs=rngs,
            kernel_metadata=kernel_metadata,
            bias_metadata=bias_metadata,
        )

    def _initializer(self, init: nnx.Initializer) -> nnx.Initializer:
        """Return an initialiser of the kernel that draws the kernel which ``nnx.ConvTranspose`` would store."""
        if not self.transpose_kernel or init is nnx.initializers.zeros:
            return init
        shape = (*self.kernel_size, self.out_features, self.in_features)
        return lambda key, _, dtype: _mirrored(unwrapped(init(key, shape, dtype))[0])

    def plain_kernel(self, kernel: jax.Array) -> jax.Array:
        return _mirrored(kernel) if self.transpose_kernel else kernel

    own_kernel = plain_kernel  # a kernel that is mirrored twice is the kernel itself

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Return the transposed convolution of ``inputs [*batch, *spatial, in_features]``."""
        check_one_layer(self)
        rank = len(self.kernel_size)
        check_inputs(inputs, self.in_features, rank + 1)
        batch_shape = inputs.shape[: inputs.ndim - rank - 1]
        inputs = inputs.reshape(math.prod(batch_shape), *inputs.shape[len(batch_shape) :])
        bias = None if self.bias is None else self.bias[...]
        has_custom_function = self.promote_dtype is not dtypes.promote_dtype or self.preferred_element_type is not None
        if has_custom_function or has_symbol(inputs) or max(self.kernel_dilation) > 1:
            inputs, kernel, bias = self.promote_dtype((inputs, self.effective_kernel(), bias), dtype=self.dtype)
            outputs = self._native_convolution(inputs, kernel)
        else:
            inputs, _, bias = self.promote_dtype((inputs, self.kernel[...], bias), dtype=self.dtype)
            # With the zeros written out it is an ordinary convolution, so that every method can compute it.
            widths = [(low, high, stride - 1) for (low, high), stride in zip(self._pads(), self.strides, strict=True)]
            spread = lax.pad(inputs, jnp.zeros((), inputs.dtype), [(0, 0, 0), *widths, (0, 0, 0)])
            geometry = Geometry(self.kernel_shape, (1,) * rank, ((0, 0),) * rank, precision=self.precision)
            outputs = self._apply(spread, geometry)
        if self.padding == "CIRCULAR":
            periods = [size * stride for size, stride in zip(inputs.shape[1:-1], self.strides, strict=True)]
            outputs = _wrapped(outputs, periods, self.transpose_kernel)
        if bias is not None:
            outputs += jnp.expand_dims(bias, range(outputs.ndim - 1))
        return outputs.reshape(*batch_shape, *outputs.shape[1:])

    def _native_convolution(self, inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            inputs,
            kernel,
            (1,) * len(self.kernel_size),
            self._pads(),
            lhs_dilation=self.strides,
            rhs_dilation=self.kernel_dilation,
            dimension_numbers=channels_last(inputs.ndim),
            precision=self.precision,
            preferred_element_type=self.preferred_element_type,
        )

    def _pads(self) -> tuple[tuple[int, int], ...]:
        """Return the zeros before and after each spatial dimension, as ``lax.conv_transpose`` chooses them."""
        if not isinstance(self.padding, str):
            return self.padding
        pads = []
        for size, stride, dilation in zip(self.kernel_size, self.strides, self.kernel_dilation, strict=True):
            width = (size - 1) * dilation + 1
            if self.padding == "SAME":
                total = width + stride - 2
                low = width - 1 if stride > width - 1 else -(-total // 2)
                pads.append((low, total - low))
            else:
                pads.append((width - 1, max(width, stride) - 1))
        return tuple(pads)


def kernel_shape_of(layer: Any) -> tuple[int, ...]:
    """Return the kernel shape of the counterpart of an ``nnx.ConvTranspose``."""
    return (*layer.kernel_size, layer.in_features, layer.out_features)


def _mirrored(kernel: jax.Array) -> jax.Array:
    """Return a kernel mirrored in space, inputs and outputs swapped; twice, it is the kernel itself."""
    return jnp.flip(kernel, range(kernel.ndim - 2)).swapaxes(-1, -2)


def _wrapped(outputs: jax.Array, periods: Sequence[int], is_transpose: bool) -> jax.Array:
    """Return the outputs of a "VALID" transposed convolution wrapped around each spatial dimension, and summed.

    Zeros fill the outputs up to whole periods. They are divided as in ``nnx.ConvTranspose``, so that the inputs keep
    their places.
    """
    for axis, period in enumerate(periods, start=1):
        missing = -(outputs.shape[axis] - period) % (2 * period)
        smaller, larger = missing // 2, (missing + 1) // 2
        widths = [(0, 0)] * outputs.ndim
        widths[axis] = (smaller, larger) if is_transpose else (larger, smaller)
        shape = outputs.shape
        outputs = jnp.pad(outputs, widths).reshape(*shape[:axis], -1, period, *shape[axis + 1 :]).sum(axis)
    return outputs
