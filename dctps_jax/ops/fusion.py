"""Workarounds that make XLA store arrays, order them well and keep few of them; and values that vary by device.

XLA decides by itself what it fuses, what it computes twice, and what it keeps from the forward to the backward pass.
The functions here write programs for which it decides well. Each works around a behaviour of XLA's CPU backend in JAX
0.10.2. All except :func:`stored_in_order` were measured in eight compact 3×3 layers of 16 channels
(``test_no_method_needs_much_more_memory_than_another`` in ``tests/test_execution.py``, which fails if any of them is
left out) and in Fixup-ResNet20 with 0.1 % of its weights. ``benchmarks/train_step.py`` measures time and memory of
whole steps.

``jax.lax.optimization_barrier`` cannot replace them: XLA's CPU backend removes it before it fuses. With a barrier in
place of :func:`materialized`, the compiled programs need exactly as many operations and as much memory as without it.
(A related report: https://github.com/openxla/xla/issues/20440.)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import core
from jax.experimental import layout

from dctps_jax.ops.target import PORTABLE, platform, tracing_for


def materialized(x: jax.Array) -> jax.Array:
    """Return ``x``, computed once and stored.

    XLA fuses elementwise operations into each operation that reads their result, and so computes them again there, back
    to the last convolution. A gather computes them once for each number it picks. XLA does not fuse across a write into
    an array, so this function adds zero to the first number. Residual blocks return their sums through it. Without it
    the eight layers took 11.6 MB of temporary memory instead of 6.6 ("per_weight"), and Fixup-ResNet20 took 81 MB
    instead of 61 and a fifth more operations.

    A TPU's compiler gets ``x`` unchanged. It fuses elementwise operations into the convolutions before and after, and a
    write in between would force it to store ``x``. Three 3×3 layers of 64 channels with BatchNorm, on 128 maps of 32×32
    in bfloat16, took 1.6 times as many estimated cycles with the write. A program for every platform also gets ``x``
    unchanged: on a mesh with explicit axes, JAX would ask how the result of the write is sharded.
    """
    return x.at[(0,) * x.ndim].add(0) if x.size and platform() not in ("tpu", PORTABLE) else x


def apart_on_tpu(x: jax.Array) -> jax.Array:
    """Return ``x``. On a TPU neither ``x`` nor its gradient is fused with operations before and after.

    Its compiler (libtpu 0.0.42) fuses the gradient of α with the convolution that computes the kernel's gradient, and
    then tiles the convolution for the sum. In ResNet50's 256→64 layers it took 295,000 estimated cycles, and 63,000
    alone.
    """
    return jax.lax.optimization_barrier(x) if platform() == "tpu" else x


def zero_after(x: jax.Array) -> jax.Array:
    """Return an integer 0 that, for the compiler, depends on ``x``, so that whatever uses it is computed after ``x``.

    XLA computes early what depends on nothing else, and keeps it: gathered channels in the forward pass, or the zeros
    of all layers at the start of the program. With a plain 0 the eight layers took 11.5 MB instead of 5.7
    ("on_support").
    """
    if not x.size:
        return jnp.zeros((), jnp.int32)
    return jnp.minimum((x[(0,) * x.ndim] > 0).astype(jnp.int32), 0)


def made_apart(make: Callable[[], jax.Array], after: jax.Array) -> jax.Array:
    """Return ``make()``, computed by itself and stored, not before ``after`` is computed.

    XLA fuses nothing into or out of a branch whose condition it cannot know. Without the branch it computes an array in
    the order in which it is read. If the array is transposed afterwards, it reads single numbers that lie far apart.
    The eight layers took 8.1 MB instead of 5.3 ("per_weight_rows").
    """
    made = jax.eval_shape(make)
    nothing = varying_as(after, jnp.zeros(made.shape, made.dtype))
    return jax.lax.cond(zero_after(after) == 0, make, lambda: nothing)


def orders_are_known() -> bool:
    """Return whether :func:`stored_in_order` has an effect: in a program that ``tracing_for("cpu")`` names.

    Training programs are named so. Any other program may be exported, and ``jax.export`` refuses a program that asks
    for an order.
    """
    return tracing_for.value == "cpu" and platform() == "cpu"


def stored_in_order(x: jax.Array, *axes: int) -> jax.Array:
    """Return ``x``, stored with its ``axes`` in this order, from the slowest to the fastest. Its shape stays as it is.

    XLA's CPU backend stores an array row by row unless asked for another order. Layers that compute on transposed
    arrays transpose their outputs back, and the next layer transposes them again. If the outputs are stored in the
    other order, both transpositions cost nothing, and elementwise operations in between use that order as well. A step
    of the perceptron of ``benchmarks/masked_mlp.py`` with 0.1 % of its weights takes 0.41 ms instead of 0.67.
    """
    if not orders_are_known() or not isinstance(x, core.Tracer):
        return x
    # JAX 0.10.2 returns the result of a constraint in the order of that constraint, and programs that get such an array
    # read it in the wrong order. It does not look behind the product, and XLA removes the product
    # (`test_outputs_of_a_program_are_stored_row_by_row` in tests/ops/test_fusion.py).
    return layout.with_layout_constraint(x, layout.Layout(axes)) * 1


def varying_as(like: jax.Array, x: Any) -> Any:
    """Return ``x`` (an array or None) as varying over the axes of a ``shard_map`` over which ``like`` varies.

    JAX then sums the gradient of ``x`` over these devices, as it does for operations without gradients of their own.
    """
    if x is None:
        return None
    missing = tuple(_varying_axes(like) - _varying_axes(x))
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def varying_alike(*arrays: Any) -> tuple[Any, ...]:
    """Return the arrays (or None) as varying over all axes of a ``shard_map`` over which one of them varies.

    An operation with gradients by hand needs this: each gradient must vary over the same axes as its array.
    """
    for like in arrays:
        if like is not None:
            arrays = tuple(varying_as(like, array) for array in arrays)
    return arrays


def _varying_axes(x: Any) -> frozenset[str]:
    kind: Any = jax.typeof(x)
    # JAX 0.10.2 has `manual_axis_type`, other versions have `vma`.
    return kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma
