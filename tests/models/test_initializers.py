"""Initial kernels are those of Flax's own initialisers, up to rounding."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dctps_jax.models.initializers import INITIALIZERS

scaling = partial(nnx.initializers.variance_scaling, distribution="normal")
FLAX = {
    "kaiming_normal": scaling(2.0, "fan_in"),
    "kaiming_normal_fan_out": scaling(2.0, "fan_out"),
    "xavier_normal": scaling(1.0, "fan_avg"),
}
# Units in the last place. JAX 0.12 joins the multiplications of Flax's function.
MAX_ULP = 0 if jax.__version_info__ < (0, 11) else 2


@pytest.mark.parametrize("name", FLAX)
@pytest.mark.parametrize("shape", [(7, 3), (5, 5, 6, 16), (3, 3, 1, 24), (1, 1, 300, 256)])
def test_normals(name, shape):
    for dtype in (jnp.float32, jnp.float64):
        with jax.enable_x64(dtype == jnp.float64):
            found = INITIALIZERS[name](jax.random.key(3), shape, dtype)
            expected = np.asarray(FLAX[name](jax.random.key(3), shape, dtype))
            assert found.dtype == expected.dtype
            np.testing.assert_array_max_ulp(np.asarray(found), expected, maxulp=MAX_ULP)


def test_a_network_draws_few_lengths_of_numbers(caplog):
    shapes = [(3, 3, 16, 32), (1, 1, 64, 32), (400, 120), (5, 5, 6, 16)]
    with jax.log_compiles():
        for shape in shapes:
            INITIALIZERS["kaiming_normal"](jax.random.key(0), shape, jnp.float16)
    drawn = [text for text in caplog.messages if text.startswith("Compiling jit(_normal)")]
    assert len(drawn) == 1, drawn
