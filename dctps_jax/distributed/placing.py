"""Place an array whole on every device of several processes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def place_whole(array: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """Return a copy of ``array``, whole on each device of ``sharding``; each process has the same array.

    ``device_put`` would compare the arrays of all processes, which takes seconds for the images of a data set.
    """
    if jax.process_count() == 1:
        # device_put may alias the source on one of the devices, and a donated alias would delete the caller's array.
        copy = jnp.copy(array) if isinstance(array, jax.Array) else array
        return jax.device_put(copy, sharding, may_alias=False)
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = place_whole(jax.random.key_data(array), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    # An array on the devices of all processes is whole on those of this one.
    here = array.addressable_data(0) if isinstance(array, jax.Array) else np.asarray(array)  # also a memory map
    devices = sharding.addressable_devices_indices_map(here.shape)
    copies = [jax.device_put(here, device, may_alias=False) for device in devices]
    return jax.make_array_from_single_device_arrays(here.shape, sharding, copies)
