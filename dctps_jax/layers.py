"""DCT plus Sparse layers: ``K = α·D + S``, and the same layers without offset, ``K = S``.

``DCTpSConv`` and ``DCTpSLinear`` take the arguments of ``nnx.Conv`` and ``nnx.Linear`` and stand in for them. Their
kernels are described in :mod:`dctps_jax.kernels`.
"""

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
from dctps_jax.errors import UserError
from dctps_jax.kernels import KernelLayer
from dctps_jax.offsets import Offset
from dctps_jax.ops.geometry import Geometry, channels_last
from dctps_jax.stacks import check_one_layer

DEFAULT_KERNEL_INIT = nnx.initializers.lecun_normal()  # that of nnx.Conv and nnx.Linear
PADDINGS = ("SAME", "VALID", "CIRCULAR", "REFLECT", "CAUSAL", "SAME_LOWER")


class DCTpSConv(KernelLayer):
    """Convolve channels-last inputs with ``K = α·D + S``; a drop-in for ``nnx.Conv``.

    All arguments of ``nnx.Conv`` are there under their names and mean the same: ``kernel_size`` (an int is one spatial
    dimension), ``strides``, ``padding`` ("SAME", "VALID", "CIRCULAR", "REFLECT", "CAUSAL", an int, or a sequence of
    ints or pairs), dilations, ``feature_group_count``, ``use_bias``, ``mask``, dtypes, ``precision``, initialisers. The
    kernel has shape ``(*kernel_size, in_features // feature_group_count, out_features)``. Besides:

    - ``offset``: a name in :data:`dctps_jax.offsets.OFFSETS` or an :class:`~dctps_jax.offsets.Offset` of your own adds
      α·D (one summed kernel, one convolution); None gives an ordinary convolution that can be masked.
    - ``alpha_init``, ``alpha_trainable``: the initial α, and whether it is trained.
    - ``kernel_init`` initialises S where there is no offset; with one, S starts at zero.
    - ``mask``: boolean, of the kernel's shape, True where a weight is trained.
    - ``support``: instead of a mask, the ascending positions of the trained weights in the flattened kernel. The layer
      stores only their values. They lie on every device, also where ``nnx.with_partitioning`` divides the kernel among
      devices. In a masked layer kernel and mask are divided.

    A layer with neither mask nor support trains all weights.

    Raises :class:`~dctps_jax.errors.UserError` for an unknown offset, features that the groups do not divide, or a mask
    of another shape.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        padding: str | int | Sequence[int | tuple[int, int]] = "SAME",
        input_dilation: int | Sequence[int] | None = 1,
        kernel_dilation: int | Sequence[int] | None = 1,
        feature_group_count: int = 1,
        use_bias: bool = True,
        mask: jax.Array | None = None,
        support: jax.Array | np.ndarray | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        precision: lax.PrecisionLike = None,
        kernel_init: nnx.Initializer = DEFAULT_KERNEL_INIT,
        bias_init: nnx.Initializer = nnx.initializers.zeros,
        conv_general_dilated: Any = lax.conv_general_dilated,
        promote_dtype: Any = dtypes.promote_dtype,
        preferred_element_type: Any = None,
        offset: str | Offset | None = "dct",
        alpha_init: float = 1.0,
        alpha_trainable: bool = True,
        rngs: nnx.Rngs,
        kernel_metadata: Mapping[str, Any] = MappingProxyType({}),
        bias_metadata: Mapping[str, Any] = MappingProxyType({}),
    ):
        check_size(in_features=in_features, out_features=out_features, feature_group_count=feature_group_count)
        kernel_size = checked_kernel_size(kernel_size)
        if in_features % feature_group_count or out_features % feature_group_count:
            raise UserError(
                f"feature_group_count is {feature_group_count}; it must divide in_features ({in_features}) and "
                f"out_features ({out_features})"
            )
        rank = len(kernel_size)
        self.in_features = in_features
        self.out_features = out_features
        self.kernel_size = kernel_size
        self.strides = per_dimension("strides", strides, rank)
        self.padding = checked_padding(padding.upper() if isinstance(padding, str) else padding, rank, PADDINGS)
        if self.padding == "CAUSAL" and rank != 1:
            raise UserError(f'padding "CAUSAL" is for one spatial dimension, the kernel has {rank}')
        self.input_dilation = per_dimension("input_dilation", input_dilation, rank)
        self.kernel_dilation = per_dimension("kernel_dilation", kernel_dilation, rank)
        self.feature_group_count = feature_group_count
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.precision = precision
        self.conv_general_dilated = conv_general_dilated
        self.promote_dtype = promote_dtype
        self.preferred_element_type = preferred_element_type
        self._init_parameters(
            (*kernel_size, in_features // feature_group_count, out_features),
            offset=offset,
            alpha_init=alpha_init,
            alpha_trainable=alpha_trainable,
            mask=mask,
            support=support,
            use_bias=use_bias,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            rngs=rngs,
            kernel_metadata=kernel_metadata,
            bias_metadata=bias_metadata,
        )

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """Return the convolution of ``inputs [*batch, *spatial, in_features]``, with any number of batch axes."""
        check_one_layer(self)
        check_inputs(inputs, self.in_features, len(self.kernel_size) + 1)
        batch_shape = inputs.shape[: inputs.ndim - len(self.kernel_size) - 1]
        inputs = inputs.reshape(math.prod(batch_shape), *inputs.shape[len(batch_shape) :])
        bias = None if self.bias is None else self.bias[...]
        if self._needs_native_convolution(inputs) or out_sharding is not None:
            inputs, kernel, bias = self.promote_dtype((inputs, self.effective_kernel(), bias), dtype=self.dtype)
            inputs, padding = self._pad(inputs)
            outputs = self._native_convolution(inputs, kernel, padding, out_sharding)
        else:
            # What is stored of the kernel determines the common dtype in its place: not every method builds K.
            inputs, _, bias = self.promote_dtype((inputs, self.kernel[...], bias), dtype=self.dtype)
            inputs, padding = self._pad(inputs)
            outputs = self._apply(inputs, self._geometry(inputs, padding))
        if bias is not None:
            outputs += jnp.expand_dims(bias, range(outputs.ndim - 1))
        return outputs.reshape(*batch_shape, *outputs.shape[1:])

    def _needs_native_convolution(self, inputs: jax.Array) -> bool:
        """Return whether only the native convolution can do what is asked."""
        dilated = max(*self.input_dilation, *self.kernel_dilation) > 1
        has_custom_function = (
            self.conv_general_dilated is not lax.conv_general_dilated or self.promote_dtype is not dtypes.promote_dtype
        )
        return dilated or has_custom_function or has_symbol(inputs) or self.preferred_element_type is not None

    def _geometry(self, inputs: jax.Array, padding: Any) -> Geometry:
        """Return the geometry for the methods."""
        if isinstance(padding, str):
            padding = lax.padtype_to_pads(inputs.shape[1:-1], self.kernel_size, self.strides, padding)
        pads = tuple((low, high) for low, high in padding)
        return Geometry(self.kernel_shape, self.strides, pads, self.feature_group_count, self.precision)

    def _native_convolution(self, inputs: jax.Array, kernel: jax.Array, padding: Any, out_sharding: Any) -> jax.Array:
        return self.conv_general_dilated(
            inputs,
            kernel,
            self.strides,
            padding,
            lhs_dilation=self.input_dilation,
            rhs_dilation=self.kernel_dilation,
            dimension_numbers=channels_last(inputs.ndim),
            feature_group_count=self.feature_group_count,
            precision=self.precision,
            out_sharding=out_sharding,
            **element_type_of(self),
        )

    def _pad(self, inputs: jax.Array) -> tuple[jax.Array, str | tuple[tuple[int, int], ...]]:
        """Pad for the modes that ``lax`` does not know. Return the inputs and the padding that is left to ``lax``."""
        if self.padding not in ("CIRCULAR", "REFLECT", "CAUSAL"):
            return inputs, self.padding
        extents = [(size - 1) * dilation for size, dilation in zip(self.kernel_size, self.kernel_dilation, strict=True)]
        if self.padding == "CAUSAL":
            return jnp.pad(inputs, [(0, 0), (extents[0], 0), (0, 0)]), "VALID"
        widths = [(0, 0), *((extent // 2, (extent + 1) // 2) for extent in extents), (0, 0)]
        return jnp.pad(inputs, widths, mode="wrap" if self.padding == "CIRCULAR" else "reflect"), "VALID"


class DCTpSLinear(KernelLayer):
    """Multiply the last axis by ``K = α·D + S``; a drop-in for ``nnx.Linear``.

    All arguments of ``nnx.Linear`` are there under their names; ``offset``, ``alpha_init``, ``alpha_trainable``,
    ``kernel_init``, ``mask`` and ``support`` as in :class:`DCTpSConv`. The kernel has shape
    ``(in_features, out_features)``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        mask: jax.Array | None = None,
        support: jax.Array | np.ndarray | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        precision: lax.PrecisionLike = None,
        kernel_init: nnx.Initializer = DEFAULT_KERNEL_INIT,
        bias_init: nnx.Initializer = nnx.initializers.zeros,
        dot_general: Any = lax.dot_general,
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
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.precision = precision
        self.dot_general = dot_general
        self.promote_dtype = promote_dtype
        self.preferred_element_type = preferred_element_type
        self._init_parameters(
            (in_features, out_features),
            offset=offset,
            alpha_init=alpha_init,
            alpha_trainable=alpha_trainable,
            mask=mask,
            support=support,
            use_bias=use_bias,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            rngs=rngs,
            kernel_metadata=kernel_metadata,
            bias_metadata=bias_metadata,
        )

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """Return ``inputs @ K + bias`` for ``inputs [..., in_features]``."""
        check_one_layer(self)
        inputs = jnp.asarray(inputs) if isinstance(inputs, list | tuple) else inputs
        check_inputs(inputs, self.in_features)
        bias = None if self.bias is None else self.bias[...]
        has_custom_function = self.dot_general is not lax.dot_general or self.promote_dtype is not dtypes.promote_dtype
        if has_custom_function or self.preferred_element_type is not None or out_sharding is not None:
            inputs, kernel, bias = self.promote_dtype((inputs, self.effective_kernel(), bias), dtype=self.dtype)
            outputs = self._native_product(inputs, kernel, out_sharding)
        else:
            inputs, _, bias = self.promote_dtype((inputs, self.kernel[...], bias), dtype=self.dtype)
            outputs = self._multiply(inputs, self.precision)
        return outputs if bias is None else outputs + jnp.expand_dims(bias, range(outputs.ndim - 1))

    def _native_product(self, inputs: jax.Array, kernel: jax.Array, out_sharding: Any) -> jax.Array:
        return self.dot_general(
            inputs,
            kernel,
            (((inputs.ndim - 1,), (0,)), ((), ())),
            precision=self.precision,
            out_sharding=out_sharding,
            **element_type_of(self),
        )


def element_type_of(layer: Any) -> dict[str, Any]:
    """Return the argument ``preferred_element_type`` of a layer's native product, if the layer has one."""
    return {} if layer.preferred_element_type is None else {"preferred_element_type": layer.preferred_element_type}


def has_symbol(inputs: jax.Array) -> bool:
    """Return whether a height or width of ``inputs [batch, *spatial, features]`` is a symbol of ``jax.export``."""
    return not all(isinstance(size, int) for size in inputs.shape[1:-1])
