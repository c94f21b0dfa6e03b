"""What an operation with a gradient of its own needs from the compiler: stored inputs, and parameters on every device."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def materialized(x: jax.Array) -> jax.Array:
    """Return ``x``, computed once and stored.

    A compiler that fuses puts the making of an elementwise result into every operation that reads it, back to the last
    convolutions and again for each number that a gather picks. It can't do so across a write into the array.
    """
    return x.at[(0,) * x.ndim].add(0) if x.size else x


def zero_after(x: jax.Array) -> jax.Array:
    """Return an integer 0 that a compiler takes to depend on ``x``: what is computed with it comes after ``x``."""
    if not x.size:
        return jnp.zeros((), jnp.int32)
    return jnp.minimum((x[(0,) * x.ndim] > 0).astype(jnp.int32), 0)


def made_apart(make: Callable[[], jax.Array], after: jax.Array) -> jax.Array:
    """Return ``make()``, computed by itself and stored, not before ``after`` is there.

    A compiler fuses nothing into or out of a branch that it cannot foresee. Without one it makes an array in the order in which it is
    read: what is transposed afterwards number by number, far apart.
    """
    made = jax.eval_shape(make)
    nothing = varying_as(after, jnp.zeros(made.shape, made.dtype))
    return jax.lax.cond(zero_after(after) == 0, make, lambda: nothing)


def varying_as(like: jax.Array, x: Any) -> Any:
    """Return ``x`` (an array or None) as a value of each device alone, along the axes of a ``shard_map`` where ``like`` is.

    Its gradient is then summed over these devices, as that of an operation without a gradient of its own.
    """
    if x is None:
        return None
    missing = tuple(_varying_axes(like) - _varying_axes(x))
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def _varying_axes(x: Any) -> frozenset[str]:
    kind: Any = jax.typeof(x)
    return kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma
