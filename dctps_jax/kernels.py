"""The kernel of a layer, ``K = α·D + M⊙S``: its trained part, the two forms in which it is stored, and the sum.

The sparse part M⊙S, S for short, is stored *masked*, as a dense array beside a boolean mask, or *compact*, as its
trained values beside their positions. Both forms are the same function of the trained weights, with the same gradients.
A compact layer stores no array of its kernel's size. The type of a variable says what its numbers are:

====================  =======================================================================
``SparseParam``       S, trainable, an ``nnx.Param``: of the kernel's shape, or compact ``[nnz]``
``Mask``              masked: boolean, of the kernel's shape, True where a weight is trained
``Support``           compact: int32 ``[nnz]``, positions in the flattened kernel, ascending
``Alpha``             α, a trainable scalar; an ``nnx.Param``
``FrozenAlpha``       α where it is not trainable
``Frozen``            W₀, a kernel that stays as it is, in layers with ``K = W₀ + M⊙S``
====================  =======================================================================

A layer without mask and support trains all weights. D is not stored: it follows from the kernel's shape
(:mod:`dctps_jax.offsets`).

``nnx.vmap`` over a constructor makes a stack: one module whose variables hold many layers of the same shape, which
``nnx.scan`` or ``nnx.vmap`` applies. Every variable of a stack then has the stack's axes before its own: S
``[layers, *kernel_shape]``, positions ``[layers, nnz]``, α ``[layers]``.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dctps_jax.arguments import as_array, check_dtype, check_flag, check_number, check_zero_or_one, words
from dctps_jax.errors import UserError
from dctps_jax.offsets import Offset, find_offset
from dctps_jax.ops.convolution import convolve
from dctps_jax.ops.cost_model import choose
from dctps_jax.ops.geometry import Geometry
from dctps_jax.ops.methods import apply_kernel
from dctps_jax.ops.sparse_part import add_at
from dctps_jax.ops.target import PORTABLE, platform
from dctps_jax.ops.work import Work
from dctps_jax.partitioning import SHARDING, add_metadata, metadata_of_values, placed_like, without_metadata
from dctps_jax.stacks import of_each
from dctps_jax.supports import check_positions, initial_values, values_at


class SparseParam(nnx.Param):
    """The trainable part S of a kernel. Its gradient is exactly zero where a weight is not trained."""


class Mask(nnx.Variable):
    """M, the boolean mask of a kernel: True where a weight is trained."""


class Support(nnx.Variable):
    """The ascending positions of the trained weights in the flattened kernel, int32. S then holds only their values."""


class Alpha(nnx.Param):
    """The trainable scalar α that scales the offset of a layer."""


class FrozenAlpha(nnx.Variable):
    """The scalar α of a layer that keeps its initial value."""


class Frozen(nnx.Variable):
    """An array that training does not change: the kernel W₀ that S is added to, or another former parameter."""


class KernelLayer(nnx.Module):
    """What all layers share: the parameters of ``K = α·D + S``, their two forms, and their sum.

    ``method`` says how a compact layer is computed. It is a name in :data:`dctps_jax.ops.methods.METHODS`, or "auto",
    for which :mod:`dctps_jax.ops.cost_model` chooses a method.
    """

    dtype: Any

    def _init_parameters(
        self,
        kernel_shape: tuple[int, ...],
        *,
        offset: str | Offset | None,
        alpha_init: float,
        alpha_trainable: bool,
        mask: jax.Array | None,
        support: jax.Array | np.ndarray | None,
        use_bias: bool,
        param_dtype: Any,
        kernel_init: nnx.Initializer,
        bias_init: nnx.Initializer,
        rngs: nnx.Rngs,
        kernel_metadata: Mapping[str, Any],
        bias_metadata: Mapping[str, Any],
        bias_shape: tuple[int, ...] | None = None,
    ) -> None:
        check_flag("use_bias", use_bias)
        check_dtype("param_dtype", param_dtype)
        check_dtype("dtype", self.dtype, is_optional=True)
        check_number("alpha_init", alpha_init)
        check_flag("alpha_trainable", alpha_trainable)
        if not callable(getattr(rngs, "params", None)):
            raise UserError(f"rngs is {words(rngs)}; it must be an nnx.Rngs, e.g. nnx.Rngs(0)")
        if mask is not None and support is not None:
            raise UserError("both mask and support are given; a layer takes one of them")
        self.kernel_shape = kernel_shape
        self.offset = find_offset(offset)
        self.method = "auto"
        self.mask: Mask | None = nnx.data(None)
        self.support: Support | None = nnx.data(None)
        self.base: Frozen | None = nnx.data(None)
        key = rngs.params()
        init, metadata = without_metadata(kernel_init, key, kernel_shape, param_dtype)
        init = init if self.offset is None else nnx.initializers.zeros
        metadata = {**kernel_metadata, **metadata}
        if support is None:
            kernel = init(key, kernel_shape, param_dtype)
        else:
            positions = check_positions(support, kernel_shape)
            kernel = initial_values(init, key, kernel_shape, param_dtype, positions)
            self.support = nnx.data(Support(positions))
            metadata = metadata_of_values(metadata, 0)
        self.kernel = SparseParam(kernel, **metadata)
        self.alpha: nnx.Variable | None = nnx.data(None)
        if self.offset is not None:
            alpha_type = Alpha if alpha_trainable else FrozenAlpha
            # jnp.array makes a buffer of its own for each layer: donation refuses a buffer that occurs twice.
            self.alpha = nnx.data(alpha_type(jnp.array(alpha_init, param_dtype)))
        if mask is not None:
            self.set_mask(mask)
        self.bias: nnx.Param | Frozen | None = nnx.data(None)
        if use_bias:
            bias_shape = kernel_shape[-1:] if bias_shape is None else bias_shape
            self.bias = nnx.data(nnx.Param(bias_init(rngs.params(), bias_shape, param_dtype), **bias_metadata))
        self.use_bias, self.bias_shape = use_bias, bias_shape

    @property
    def stack(self) -> tuple[int, ...]:
        """The sizes of the axes in which ``nnx.vmap`` has stacked layers, e.g. ``(5,)`` for 5; ``()`` for one layer."""
        shape = self.kernel.get_value().shape  # an abstract array has no items
        return shape[: len(shape) - (1 if self.support is not None else len(self.kernel_shape))]

    @property
    def is_dense(self) -> bool:
        """Whether the layer trains all its weights: it has neither a mask nor a support."""
        return self.mask is None and self.support is None

    @property
    def has_fixed_part(self) -> bool:
        """Whether S is added to something: an offset or a frozen kernel."""
        return self.offset is not None or self.base is not None

    def set_mask(self, mask: jax.Array | np.ndarray) -> None:
        """Train only the weights where ``mask`` (boolean, of the kernel's shape) is True. The others become zero.

        The layer is then masked, whatever form it had before. For a stack, the mask has the stack's axes before the
        axes of the kernel. It is divided among devices like the kernel.
        """
        mask = jnp.asarray(as_array("the mask", mask, "an array of booleans"))
        if mask.shape != (*self.stack, *self.kernel_shape):
            raise UserError(
                f"the mask has shape {mask.shape}; it must have the kernel's shape {(*self.stack, *self.kernel_shape)}"
            )
        check_zero_or_one(mask)
        mask = jnp.array(mask != 0)
        self.kernel.set_value(jnp.where(mask, self.sparse_kernel(), 0))
        self.support = nnx.data(None)
        self.mask = nnx.data(Mask(placed_like(mask, self.kernel[...])))
        metadata = self.kernel.get_metadata()
        add_metadata(self.mask, {name: metadata[name] for name in SHARDING if name in metadata})

    def set_support(self, positions: jax.Array | np.ndarray) -> None:
        """Train only the weights at the ascending ``positions`` of the flattened kernel. Keep only their values.

        The layer is then compact, whatever form it had before. For a stack, ``positions`` is ``[*stack, nnz]``, and the
        values are divided among devices like the layers of the stack. The values of a single layer lie whole on every
        device, even if ``nnx.with_partitioning`` divides the kernel.
        """
        support = check_positions(positions, self.kernel_shape, self.stack)
        metadata = metadata_of_values(self.kernel.get_metadata(), len(self.stack))
        self.kernel.set_value(values_at(self.sparse_kernel(), support))
        add_metadata(self.kernel, metadata)
        self.mask = nnx.data(None)
        self.support = nnx.data(Support(support))

    def set_base(self, kernel: jax.Array) -> None:
        """Add S to ``kernel``, W₀ of the kernel's shape, which is not trained: ``K = W₀ + M⊙S``.

        Raises :class:`~dctps_jax.errors.UserError` for a layer with an offset, and for a kernel of another shape.
        """
        if self.offset is not None:
            raise UserError(f"offset is {self.offset.name!r}; a layer with a frozen kernel has none: offset=None")
        if kernel.shape != self.kernel_shape:
            raise UserError(f"the frozen kernel has shape {kernel.shape}; it must have that of K, {self.kernel_shape}")
        self.base = nnx.data(Frozen(kernel))

    def set_dense(self) -> None:
        """Train all weights, starting from their present values."""
        self.kernel.set_value(self.sparse_kernel())
        self.mask, self.support = nnx.data(None), nnx.data(None)

    def sparse_kernel(self) -> jax.Array:
        """Return S in the kernel's shape, after the axes of a stack, zero where nothing is trained."""
        kernel = self.kernel[...]
        if self.support is not None:
            scatter = partial(add_at, jnp.zeros(self.kernel_shape, kernel.dtype))
            return of_each(self.stack, scatter)(self.support[...], kernel)
        if self.mask is not None:
            # `where`, not a product: its transpose gives pruned weights a gradient of exactly zero even if the incoming
            # gradient is not finite (0 · NaN is NaN). So S and its optimiser state stay zero there.
            return jnp.where(self.mask[...], kernel, 0)
        return kernel

    def offset_kernel(self) -> jax.Array:
        """Return D in the kernel's shape and dtype.

        Raises :class:`~dctps_jax.errors.UserError` for a layer without offset.
        """
        if self.offset is None:
            raise UserError("offset is None; only a layer with an offset has a kernel D")
        return self.offset.kernel(self.kernel_shape, self.kernel[...].dtype)

    def fixed_part(self) -> jax.Array | float:
        """Return what S is added to: α·D, the frozen kernel W₀, or 0."""
        if self.base is not None:
            return self.base[...]
        if self.offset is None or self.alpha is None:
            return 0.0
        alpha = self.alpha[...].astype(self.kernel[...].dtype)
        if alpha.ndim == 0:
            return alpha * self.offset_kernel()
        alphas = alpha.reshape(alpha.shape + (1,) * len(self.kernel_shape))
        return alphas * jnp.expand_dims(self.offset_kernel(), range(alpha.ndim))

    def effective_kernel(self) -> jax.Array:
        """Return ``K = α·D + S``, or ``W₀ + S``, the kernel that the layer applies, in the dtype of its parameters."""
        return self.sparse_kernel() + self.fixed_part() if self.has_fixed_part else self.sparse_kernel()

    def plain_kernel(self, kernel: jax.Array) -> jax.Array:
        """Return a kernel of this layer in the shape of its counterpart in NNX."""
        return kernel

    def own_kernel(self, kernel: jax.Array) -> jax.Array:
        """Return a kernel of the counterpart in NNX in the shape of this layer."""
        return kernel

    def _apply(self, inputs: jax.Array, geometry: Geometry) -> jax.Array:
        """Return the convolution of ``inputs [batch, *spatial, in]``. A compact layer uses its method."""
        if self.support is None:
            return convolve(inputs, self.effective_kernel().astype(inputs.dtype), geometry)
        work = work_of(self, inputs, geometry)
        method = choose(self.method, work, inputs.dtype)
        if self.base is not None and method == "autodiff":
            return convolve(inputs, self.effective_kernel().astype(inputs.dtype), geometry)
        alpha = None if self.alpha is None else self.alpha[...]
        outputs = apply_kernel(method, work, inputs, self.kernel[...], alpha, self.support[...])
        if self.base is not None:
            # W₀ has no gradient. Computed apart from S, it needs no array of the kernel's size for S.
            outputs += convolve(inputs, self.base[...].astype(inputs.dtype), geometry)
        return outputs

    def _multiply(self, inputs: jax.Array, precision: Any) -> jax.Array:
        """Return ``inputs [..., in] @ K``. A compact layer uses its method."""
        geometry = Geometry(self.kernel_shape, precision=precision)
        if self.support is None or platform() == PORTABLE:
            return self._apply(inputs, geometry)  # with the whole kernel: any axis may be divided among devices
        outputs = self._apply(inputs.reshape(-1, inputs.shape[-1]), geometry)  # methods take rows
        return outputs.reshape(*inputs.shape[:-1], self.kernel_shape[-1])


def work_of(layer: KernelLayer, inputs: jax.Array, geometry: Geometry) -> Work:
    """Return what a compact layer has to compute.

    This is a function, not a method: ``nnx.tabulate`` would take a method for one that maps arrays to arrays.
    """
    return Work(geometry, inputs.shape, layer.kernel[...].size, layer.offset)
