"""``K = α·D + S`` in place of ``nnx.LinearGeneral``."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.core.frozen_dict import FrozenDict
from flax.nnx.nn import dtypes
from jax import lax

from dctps_jax.arguments import as_tuple, check_sizes, is_whole, shape_words, words
from dctps_jax.errors import UserError
from dctps_jax.layer_kinds.contraction import Contraction, TensorLayer, are_divided
from dctps_jax.layers import DEFAULT_KERNEL_INIT, element_type_of
from dctps_jax.offsets import Offset
from dctps_jax.stacks import check_one_layer


class DCTpSLinearGeneral(TensorLayer):
    """Multiply several axes by ``K = α·D + S``; a drop-in for ``nnx.LinearGeneral``.

    It has all arguments of ``nnx.LinearGeneral`` under their names. ``offset``, ``alpha_init``, ``alpha_trainable``,
    ``kernel_init``, ``mask`` and ``support`` are as in :class:`~dctps_jax.DCTpSConv`. The kernel is a matrix of shape
    ``(∏ in_features, ∏ out_features)``. With batch axes it has shape ``(1, ∏ in_features, ∏ batch sizes · ∏
    out_features)``.

    Raises :class:`~dctps_jax.errors.UserError` if ``in_features`` and ``axis`` differ in length, and for batch axes
    that are not the first ones.
    """

    def __init__(
        self,
        in_features: int | Sequence[int],
        out_features: int | Sequence[int],
        *,
        axis: int | Sequence[int] = -1,
        batch_axis: Mapping[int, int] = FrozenDict({}),
        use_bias: bool = True,
        mask: jax.Array | None = None,
        support: jax.Array | np.ndarray | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        kernel_init: nnx.Initializer = DEFAULT_KERNEL_INIT,
        bias_init: nnx.Initializer = nnx.initializers.zeros,
        precision: lax.PrecisionLike = None,
        promote_dtype: Any = dtypes.promote_dtype,
        dot_general: Any = None,
        dot_general_cls: Any = None,
        preferred_element_type: Any = None,
        offset: str | Offset | None = "dct",
        alpha_init: float = 1.0,
        alpha_trainable: bool = True,
        rngs: nnx.Rngs,
        kernel_metadata: Mapping[str, Any] = MappingProxyType({}),
        bias_metadata: Mapping[str, Any] = MappingProxyType({}),
    ):
        check_sizes(in_features=in_features, out_features=out_features)
        for name, value in (("axis", axis), ("batch_axis", batch_axis)):
            items = [*value, *value.values()] if isinstance(value, Mapping) else as_tuple(value)
            if isinstance(value, Mapping) != (name == "batch_axis") or not all(map(is_whole, items)):
                kind = "axes with their sizes, e.g. {0: 4}" if name == "batch_axis" else "one axis or several, e.g. -1"
                raise UserError(f"{name} is {words(value)}; it must be {kind}")
        self.in_features = as_tuple(in_features)
        self.out_features = as_tuple(out_features)
        self.axis = as_tuple(axis)
        self.batch_axis = FrozenDict(batch_axis)
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.precision = precision
        self.promote_dtype = promote_dtype
        self.dot_general = dot_general
        self.dot_general_cls = dot_general_cls
        self.preferred_element_type = preferred_element_type
        if len(self.in_features) != len(self.axis):
            raise UserError(f"in_features is {self.in_features} and axis is {self.axis}; they must be of one length")
        if set(self.batch_axis) != set(range(len(self.batch_axis))):
            raise UserError(f"batch_axis names the axes {list(self.batch_axis)}; they must be the first ones, from 0")
        self.contraction = contraction_of(self)
        batch_sizes, kernel_shape = tuple(self.batch_axis.values()), self.contraction.kernel_shape
        flat = (math.prod((*batch_sizes, *self.in_features)), math.prod(self.out_features))  # as nnx draws it
        self._init_parameters(
            kernel_shape,
            bias_shape=(*batch_sizes, *self.out_features),
            offset=offset,
            alpha_init=alpha_init,
            alpha_trainable=alpha_trainable,
            mask=mask,
            support=support,
            use_bias=use_bias,
            param_dtype=param_dtype,
            kernel_init=self.contraction.initializer(kernel_init, flat),
            bias_init=partial(_flat_bias, bias_init),
            rngs=rngs,
            kernel_metadata=kernel_metadata,
            bias_metadata=bias_metadata,
        )

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """Return the product over the axes ``axis``: batch axes first, then other axes of the inputs, then new ones."""
        check_one_layer(self)
        check_axes(inputs, (*self.axis, *self.batch_axis))
        axes = _positive(self.axis, inputs.ndim)
        batch = _positive(self.batch_axis, inputs.ndim)
        bias = None if self.bias is None else self.bias[...]
        if self._has_custom_function() or out_sharding is not None or are_divided(inputs, (*axes, *batch)):
            kernel = self.plain_kernel(self.effective_kernel())
            inputs, kernel, bias = self.promote_dtype((inputs, kernel, bias), dtype=self.dtype)
            outputs = self._native_product(inputs, kernel, axes, batch, out_sharding)
        else:
            inputs, _, bias = self.promote_dtype((inputs, self.kernel[...], bias), dtype=self.dtype)
            new = [f"out {number}" for number in range(len(self.out_features))]
            free = [axis for axis in range(inputs.ndim) if axis not in (*axes, *batch)]
            outputs = self._product(inputs, range(inputs.ndim), (*batch, *axes, *new), (*batch, *free, *new))
        if bias is None:
            return outputs
        batch_shape = [inputs.shape[axis] if axis in batch else 1 for axis in range(inputs.ndim) if axis not in axes]
        return outputs + bias.reshape(*batch_shape, *self.out_features)

    def _has_custom_function(self) -> bool:
        is_custom = self.dot_general is not None or self.dot_general_cls is not None
        return is_custom or self.promote_dtype is not dtypes.promote_dtype or self.preferred_element_type is not None

    def _native_product(
        self, inputs: jax.Array, kernel: jax.Array, axes: tuple[int, ...], batch: tuple[int, ...], out_sharding: Any
    ) -> jax.Array:
        dot_general = self.dot_general_cls() if self.dot_general_cls is not None else self.dot_general
        dimension_numbers = ((axes, self.contraction.inputs), (batch, self.contraction.batch))
        return (dot_general or lax.dot_general)(
            inputs,
            kernel,
            dimension_numbers,
            precision=self.precision,
            out_sharding=out_sharding,
            **element_type_of(self),
        )


def contraction_of(layer: Any) -> Contraction:
    """Return the axes of the kernel of an ``nnx.LinearGeneral`` or a :class:`DCTpSLinearGeneral`."""
    shape = (*layer.batch_axis.values(), *layer.in_features, *layer.out_features)
    ends = np.cumsum([len(layer.batch_axis), len(layer.in_features), len(layer.out_features)]).tolist()
    batch, inputs, outputs = (tuple(range(start, end)) for start, end in zip([0, *ends], ends, strict=False))
    return Contraction(shape, batch, inputs, outputs)


def _flat_bias(init: nnx.Initializer, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> Any:
    """Return a bias with its metadata, if it has any; ``init`` draws it as one list, as nnx does."""
    bias: Any = init(key, (math.prod(shape),), dtype)
    if not isinstance(bias, nnx.VariableMetadata):
        return bias.reshape(shape)
    bias.raw_value = bias.raw_value.reshape(shape)
    return bias


def check_axes(inputs: Any, axes: tuple[Any, ...]) -> None:
    """Raise UserError for inputs that do not have every one of ``axes``, each of them once."""
    rank = getattr(inputs, "ndim", 0)
    if not all(-rank <= axis < rank for axis in axes) or len({axis % rank for axis in axes}) < len(axes):
        raise UserError(
            f"the inputs have {shape_words(inputs)}; they must be an array that has the axes {axes}, each of them once"
        )


def _positive(axes: Any, rank: int) -> tuple[int, ...]:
    """Return the axes counted from the first one, in ascending order, as nnx takes them."""
    return tuple(sorted(axis % rank for axis in axes))
