"""Place an array on the devices of several processes, and get it back whole."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils


def place(array: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """Return a copy of ``array`` placed by ``sharding``. Each process has the same array.

    ``device_put`` would compare the arrays of all processes, which takes seconds for the images of a data set.
    """
    if jax.process_count() == 1:
        # device_put may alias the source on one of the devices, and a donated alias would delete the caller's array.
        copy = jnp.copy(array) if isinstance(array, jax.Array) else array
        return jax.device_put(copy, sharding, may_alias=False)
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = place(jax.random.key_data(array), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    here = _whole_here(array)
    parts = sharding.addressable_devices_indices_map(here.shape)
    copies = [jax.device_put(here[index], device, may_alias=False) for device, index in parts.items()]
    return jax.make_array_from_single_device_arrays(here.shape, sharding, copies)


def _whole_here(array: Any) -> Any:
    if not isinstance(array, jax.Array):
        return np.asarray(array)  # also a memory map
    # An array that is whole on the devices of all processes is whole on those of this one.
    return array.addressable_data(0) if array.is_fully_replicated else whole_on_host(array)


def whole_on_host(array: Any) -> np.ndarray:
    """Return a whole array that may be divided among the devices of all processes. All processes call this."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable and not array.is_fully_replicated:
        return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)
