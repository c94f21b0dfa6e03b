"""What a method of computing a compact layer is, and how a method brings its own gradients."""

from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from dctps_jax.ops.costs import Costs
from dctps_jax.ops.fusion import apart_on_tpu, varying_alike
from dctps_jax.ops.sparse_part import add_at, add_numbers_at
from dctps_jax.ops.work import Work

# In 1×1 layers of up to this many weights, the gradient of α is computed apart from the kernel's gradient. In larger
# layers, reading the kernel's gradient once more takes longer than `apart_on_tpu` saves.
MAX_APART = 1 << 16


class Method(Protocol):
    """One way of computing ``Y = X ∗ (α·D + S)`` and its gradients. All methods compute the same function.

    X are inputs ``[batch, *spatial, in]``. S holds the trained ``values`` at ``support``, the ascending positions in
    the flattened kernel. D is the offset of the work; without an offset ``alpha`` is None.
    """

    @property
    def name(self) -> str:
        """The value of ``config.execution.method`` and of a layer's attribute ``method``."""
        ...

    @property
    def fallback(self) -> str:
        """The name of the method that is taken if this one is not possible."""
        ...

    def is_possible(self, work: Work) -> bool:
        """Return whether the method can compute the layer."""
        ...

    def is_lean(self, work: Work) -> bool:
        """Return whether the method needs no more memory than a layer that trains all weights."""
        ...

    def cost(self, work: Work, costs: Costs) -> float:
        """Return the predicted nanoseconds of the layer's part of a training step, forward and all gradients."""
        ...

    def apply(
        self, work: Work, inputs: jax.Array, values: jax.Array, alpha: jax.Array | None, support: jax.Array
    ) -> jax.Array:
        """Return Y."""
        ...


class MethodWithGradients(Method, Protocol):
    """A method whose gradients are written by hand, for :func:`apply_with_gradients`.

    Layers with equal work are traced once: ``jax.jit`` keeps its traces by method and work. So a method must be
    hashable, and its functions may depend on nothing but their arguments and the contexts that JAX knows
    (``tracing_for``, x64).
    """

    def forward(
        self, work: Work, inputs: jax.Array, values: jax.Array, alpha: jax.Array | None, support: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Return Y and the residuals: what :meth:`gradients` needs."""
        ...

    def gradients(self, work: Work, residuals: Any, gradient: jax.Array) -> tuple[Any, Any, Any]:
        """Return the gradients of inputs, values and α (None without offset) for the ``gradient`` of Y."""
        ...


def apply_with_gradients(
    method: MethodWithGradients,
    work: Work,
    inputs: jax.Array,
    values: jax.Array,
    alpha: jax.Array | None,
    support: jax.Array,
) -> jax.Array:
    """Return Y by ``method.forward``, to be differentiated by ``method.gradients``."""
    return _apply(method, work, *varying_alike(inputs, values, alpha), support)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
@partial(jax.jit, static_argnums=(0, 1))
def _apply(method: MethodWithGradients, work: Work, *arrays: Any) -> jax.Array:
    return method.forward(work, *arrays)[0]


@partial(jax.jit, static_argnums=(0, 1))
def _forward(method: MethodWithGradients, work: Work, *arrays: Any) -> tuple[jax.Array, Any]:
    return method.forward(work, *arrays)


@partial(jax.jit, static_argnums=(0, 1))
def _backward(
    method: MethodWithGradients, work: Work, residuals: Any, gradient: jax.Array
) -> tuple[Any, Any, Any, None]:
    return *method.gradients(work, residuals, gradient), None


_apply.defvjp(_forward, _backward)


@partial(jax.custom_jvp, nondiff_argnums=(0, 4))
def kernel_of(work: Work, values: jax.Array, alpha: jax.Array | None, support: jax.Array, dtype: Any) -> jax.Array:
    """Return ``α·D + S`` in ``dtype``. α·D is rounded once. So are the values, and their sums with α·D."""
    # The values are added into α·D. Adding α·D to an array of S would write and read one more array. So would a kernel
    # in the dtype of the values that is converted afterwards.
    if alpha is None:
        scaled = jnp.zeros(work.geometry.kernel_shape, dtype)
    else:
        scaled = (alpha.astype(values.dtype) * work.offset_kernel(values.dtype)).astype(dtype)
    return add_at(scaled, support, values)


@kernel_of.defjvp
def _kernel_jvp(work: Work, dtype: Any, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """The transpose takes the gradients of α and of the values from one array, the kernel's gradient."""
    values, alpha, support = primals
    of_values, of_alpha, _ = tangents
    moved = jnp.zeros(work.geometry.kernel_shape, values.dtype)
    if alpha is not None:
        moved = of_alpha.astype(values.dtype) * work.offset_kernel(values.dtype)
    kernel, is_product = kernel_of(work, values, alpha, support, dtype), work.geometry.num_positions == 1
    if is_product and moved.size > MAX_APART:
        # A TPU's compiler (libtpu 0.0.42) would convert the whole gradient of this kernel before picking some numbers.
        return kernel, add_numbers_at(moved.astype(dtype), support, of_values)
    moved = add_numbers_at(moved, support, of_values)
    return kernel, (apart_on_tpu(moved) if is_product and work.geometry.size else moved).astype(dtype)


def inner_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return ⟨a, b⟩ in float32 or wider. The leading axes are summed first: one sum over millions would lose digits."""
    dtype = jnp.promote_types(b.dtype, jnp.float32)
    return jnp.sum(jnp.sum(a.astype(dtype) * b.astype(dtype), axis=range(b.ndim - 1)))


def moving_cost(work: Work, costs: Costs) -> float:
    """Return the nanoseconds that every method takes: a fixed time, and reading and writing inputs and outputs."""
    return costs.layer + 2 * (work.input_size + work.output_size) * costs.move
