"""The positions of a compact layer's weights in its flattened kernel: check them, and read the weights there."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dctps_jax.arguments import as_array
from dctps_jax.errors import UserError

# Positions are int32.
MAX_SIZE = 2**31


def check_positions(
    positions: jax.Array | np.ndarray, kernel_shape: tuple[int, ...], stack: tuple[int, ...] = ()
) -> jax.Array:
    """Return the positions of a support, ``[*stack, nnz]``, as int32.

    Raises :class:`~dctps_jax.errors.UserError` unless they ascend and lie in the flattened kernel, and for a kernel of
    more than 2^31 weights.
    """
    positions = np.asarray(as_array("support", positions, "an array of positions"))
    size = math.prod(kernel_shape)
    if size > MAX_SIZE:
        raise UserError(
            f"a kernel of shape {kernel_shape} has {size:,} weights, and the positions of a compact layer are int32, "
            f"up to {MAX_SIZE:,}; give the layer a mask instead, or divide it"
        )
    is_list = positions.ndim > 0 and positions.shape[:-1] == stack
    if not is_list or not (np.issubdtype(positions.dtype, np.integer) or positions.size == 0):
        each = f" for each of {math.prod(stack)} layers" if stack else ""
        raise UserError(
            f"a support is a list of integer positions{each}, got {positions.dtype} of shape {positions.shape}"
        )
    ascend = (positions[..., :-1] < positions[..., 1:]).all()
    if positions.size and not (positions.min() >= 0 and positions.max() < size and ascend):
        raise UserError(f"the positions of a support must ascend and lie in [0, {size}), the size of the kernel")
    return jnp.asarray(positions, jnp.int32)


def values_at(kernel: jax.Array, positions: jax.Array) -> jax.Array:
    """Return the weights at the ``positions [*stack, nnz]`` of flattened kernels, whole on every device."""
    mesh = jax.typeof(kernel).sharding.mesh
    if AxisType.Explicit in mesh.axis_types:
        kernel = jax.sharding.reshard(kernel, NamedSharding(mesh, PartitionSpec()))
    return jnp.take_along_axis(kernel.reshape(*positions.shape[:-1], -1), positions, axis=-1)


def initial_values(
    init: nnx.Initializer, key: jax.Array, kernel_shape: tuple[int, ...], dtype: Any, positions: jax.Array
) -> jax.Array:
    """Return the weights of an initial kernel at ``positions``.

    The whole kernel exists only while these weights are read. It is never made if the weights start at zero.
    """
    if init is nnx.initializers.zeros:
        return jnp.zeros(positions.shape, dtype)
    return values_at(init(key, kernel_shape, dtype), positions)
