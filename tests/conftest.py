"""Settings that hold for every test: eight fake CPU devices and strict rank promotion. And D as the original holds it."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dctps_jax import dct

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def original_offset(monkeypatch):
    """The original rounds D to float32 in every precision; ours is exact.

    What was traced before keeps the offset it was traced with: jit within the test.
    """

    def rounded(shape, dtype=jnp.float32):
        return jnp.asarray(dct.conv_kernel(shape).astype(np.float32), dtype)

    monkeypatch.setattr(dct, "offset_kernel", rounded)
