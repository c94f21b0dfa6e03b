"""The metadata that say how arrays are divided among devices, and what a change of a layer's form does to them.

Users set them by ``nnx.with_partitioning``.
"""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

# The metadata of a variable that say how its array is divided among devices.
SHARDING = ("out_sharding", "sharding_rules", "mesh")
# All names that nnx takes for the first of them.
OUT_SHARDING = ("out_sharding", "sharding", "sharding_names")
HOOKS = ("on_set_value", "on_get_value", "on_create_value", "on_add_axis", "on_remove_axis")


def without_metadata(
    init: nnx.Initializer, key: jax.Array, kernel_shape: tuple[int, ...], dtype: Any
) -> tuple[nnx.Initializer, dict[str, Any]]:
    """Return an initialiser that returns an array, and the metadata that ``nnx.with_partitioning`` gave to ``init``.

    An initialiser that wraps another one is traced, which computes nothing.
    """
    metadata: dict[str, Any] = {}
    if not hasattr(init, "__wrapped__"):
        return init, metadata

    def array(key: jax.Array, shape: Any, dtype: Any) -> jax.Array:
        value, found = unwrapped(init(key, shape, dtype))
        metadata.update(found)
        return value

    jax.eval_shape(lambda key: array(key, kernel_shape, dtype), key)
    return array, metadata


def unwrapped(value: Any) -> tuple[jax.Array, dict[str, Any]]:
    """Return what an initialiser returned as an array, and its metadata from ``nnx.with_partitioning``."""
    if not isinstance(value, nnx.VariableMetadata):
        return value, {}
    hooks = {name: getattr(value, name) for name in HOOKS if getattr(value, name)}
    return value.raw_value, {**value.metadata, **hooks}


def metadata_of_values(metadata: Mapping[str, Any], num_stack_axes: int) -> dict[str, Any]:
    """Return the metadata of a kernel for its compact values.

    The division of the kernel's own axes among devices is left out: the values have one axis, which is not one of them.
    """
    changed = dict(metadata)
    for name in OUT_SHARDING:
        sharding = metadata.get(name)
        if isinstance(sharding, NamedSharding):
            spec = PartitionSpec(*tuple(sharding.spec)[:num_stack_axes], None)
            changed[name] = NamedSharding(sharding.mesh, spec)
        elif sharding:
            changed[name] = (*tuple(sharding)[:num_stack_axes], None)
    return changed


def add_metadata(variable: nnx.Variable, metadata: Mapping[str, Any]) -> None:
    """Add the metadata of another variable, except those that nnx needs to make a variable."""
    added = {name: value for name, value in metadata.items() if name not in nnx.Variable.required_metadata}
    if added:
        variable.set_metadata(**added)


def placed_like(array: jax.Array, other: jax.Array) -> jax.Array:
    """Return ``array`` divided among devices like ``other``, which has the same shape."""
    is_divided = not isinstance(other, Tracer) and len(other.devices()) > 1
    return jax.device_put(array, other.sharding) if is_divided else array
