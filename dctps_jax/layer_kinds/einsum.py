"""``K = α·D + S`` in place of ``nnx.Einsum``."""

import string
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn import dtypes
from jax import lax

from dctps_jax.arguments import check_sizes, is_whole, shape_words, words
from dctps_jax.errors import UserError
from dctps_jax.layer_kinds.contraction import Contraction, TensorLayer, are_divided
from dctps_jax.layers import DEFAULT_KERNEL_INIT, element_type_of
from dctps_jax.offsets import Offset
from dctps_jax.stacks import check_one_layer


class DCTpSEinsum(TensorLayer):
    """An einsum of inputs and ``K = α·D + S``; a drop-in for ``nnx.Einsum``.

    It has all arguments of ``nnx.Einsum`` under their names. ``offset``, ``alpha_init``, ``alpha_trainable``,
    ``kernel_init``, ``mask`` and ``support`` are as in :class:`~dctps_jax.DCTpSConv`. The kernel is a matrix. Its rows
    are the axes that are summed over, its columns the axes that are in the outputs, in the order of ``kernel_shape``.
    If some axes are in inputs and outputs, too, it has shape ``(1, rows, their sizes · columns)``. A call with another
    ``einsum_str`` is computed with the whole kernel.

    Raises :class:`~dctps_jax.errors.UserError` for an ``einsum_str`` that is not a product with a matrix: see
    :func:`contraction_of`.
    """

    def __init__(
        self,
        einsum_str: str,
        kernel_shape: Sequence[int],
        bias_shape: Sequence[int] | None = None,
        *,
        mask: jax.Array | None = None,
        support: jax.Array | np.ndarray | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        precision: lax.PrecisionLike = None,
        kernel_init: nnx.Initializer = DEFAULT_KERNEL_INIT,
        bias_init: nnx.Initializer = nnx.initializers.zeros,
        promote_dtype: Any = dtypes.promote_dtype,
        einsum_op: Any = jnp.einsum,
        preferred_element_type: Any = None,
        offset: str | Offset | None = "dct",
        alpha_init: float = 1.0,
        alpha_trainable: bool = True,
        rngs: nnx.Rngs,
        kernel_metadata: Mapping[str, Any] = MappingProxyType({}),
        bias_metadata: Mapping[str, Any] = MappingProxyType({}),
    ):
        check_sizes(kernel_shape=kernel_shape)
        if bias_shape is not None:
            check_sizes(bias_shape=bias_shape)
        is_text = isinstance(einsum_str, str) and not is_whole(kernel_shape)
        contraction = contraction_of(einsum_str, kernel_shape) if is_text else None
        if contraction is None:
            raise UserError(
                f"einsum_str is {words(einsum_str)} for a kernel of shape {words(kernel_shape)}; it must be "
                '"inputs,kernel->outputs", with one letter for each axis of the kernel, which is in the inputs or in '
                "the outputs"
            )
        self.einsum_str = einsum_str.replace(" ", "")
        self.contraction = contraction
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.precision = precision
        self.promote_dtype = promote_dtype
        self.einsum_op = einsum_op
        self.preferred_element_type = preferred_element_type
        self._init_parameters(
            contraction.kernel_shape,
            bias_shape=tuple(np.atleast_1d(bias_shape).tolist()) if bias_shape is not None else None,
            offset=offset,
            alpha_init=alpha_init,
            alpha_trainable=alpha_trainable,
            mask=mask,
            support=support,
            use_bias=bias_shape is not None,
            param_dtype=param_dtype,
            kernel_init=contraction.initializer(kernel_init, kernel_shape),
            bias_init=bias_init,
            rngs=rngs,
            kernel_metadata=kernel_metadata,
            bias_metadata=bias_metadata,
        )

    def __call__(self, inputs: jax.Array, einsum_str: str | None = None, out_sharding: Any = None) -> jax.Array:
        """Return the einsum of the inputs and K, with the bias along the axes of the kernel that are in the outputs."""
        check_one_layer(self)
        einsum = self.einsum_str if einsum_str is None else einsum_str.replace(" ", "")
        check_num_axes(inputs, einsum)
        labels, kernel_labels, output_labels = _labels(einsum, inputs.ndim)
        bias = None if self.bias is None else self.bias[...]
        has_custom_function = self.einsum_op is not jnp.einsum or self.promote_dtype is not dtypes.promote_dtype
        is_other = einsum != self.einsum_str or out_sharding is not None or self.preferred_element_type is not None
        of_kernel = [axis for axis, label in enumerate(labels) if label in kernel_labels]
        if has_custom_function or is_other or are_divided(inputs, of_kernel):
            kernel = self.plain_kernel(self.effective_kernel())
            inputs, kernel, bias = self.promote_dtype((inputs, kernel, bias), dtype=self.dtype)
            outputs = self._native_einsum(einsum, inputs, kernel, out_sharding)
        else:
            inputs, _, bias = self.promote_dtype((inputs, self.kernel[...], bias), dtype=self.dtype)
            outputs = self._product(inputs, labels, kernel_labels, output_labels)
        if bias is None:
            return outputs
        sizes = dict(zip(kernel_labels, self.contraction.shape, strict=True))
        return outputs + bias.reshape([sizes.get(label, 1) for label in output_labels])

    def _native_einsum(self, einsum: str, inputs: jax.Array, kernel: jax.Array, out_sharding: Any) -> jax.Array:
        return self.einsum_op(
            einsum, inputs, kernel, precision=self.precision, out_sharding=out_sharding, **element_type_of(self)
        )


def contraction_of(einsum_str: str, shape: Sequence[int]) -> Contraction | None:
    """Return the axes of the kernel of an einsum, or None if the einsum is not a product of inputs with a matrix.

    It is not such a product if an operand repeats a letter, if a letter of the kernel is neither in the inputs nor in
    the outputs, if no letter is summed over, or if the kernel has an ellipsis.
    """
    operands, arrow, outputs = einsum_str.replace(" ", "").partition("->")
    inputs, comma, kernel = operands.partition(",")
    letters = [part.replace("...", "") for part in (inputs, kernel, outputs)]
    is_product = (
        bool(arrow and comma)
        and all(part.isalpha() and len(set(part)) == len(part) for part in letters if part)
        and len(kernel) == len(shape)
        and "." not in kernel
        and set(kernel) <= set(inputs + outputs)
        and set(letters[2]) <= set(inputs + kernel)
        and ("..." in outputs) == ("..." in inputs)
    )
    contracted = tuple(axis for axis, letter in enumerate(kernel) if letter not in outputs)
    if not is_product or not contracted:
        return None
    batch = tuple(axis for axis, letter in enumerate(kernel) if letter in inputs and letter in outputs)
    new = tuple(axis for axis, letter in enumerate(kernel) if letter not in inputs)
    return Contraction(tuple(shape), batch, contracted, new)


def check_num_axes(inputs: Any, einsum: str) -> None:
    """Raise UserError for inputs whose number of axes does not fit the letters of an einsum."""
    letters = einsum.partition(",")[0]
    least, has_ellipsis = len(letters.replace("...", "")), "..." in letters
    if not hasattr(inputs, "ndim") or inputs.ndim < least or (inputs.ndim > least and not has_ellipsis):
        raise UserError(
            f"the inputs have {shape_words(inputs)}; for the einsum {einsum!r} they must be an array with "
            f"{'at least ' if has_ellipsis else ''}{least} axes"
        )


def _labels(einsum: str, rank: int) -> tuple[str, str, str]:
    """Return the letters of inputs, kernel and outputs; an ellipsis is written out for inputs of ``rank`` axes."""
    operands, _, outputs = einsum.partition("->")
    inputs, _, kernel = operands.partition(",")
    unused = [letter for letter in string.ascii_letters if letter not in einsum]
    hidden = "".join(unused[: rank - len(inputs.replace("...", ""))])
    return inputs.replace("...", hidden), kernel, outputs.replace("...", hidden)
