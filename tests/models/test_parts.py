"""Pooling: the CPU's own maximum is bit for bit the native one, its gradient too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dctps_jax.models.parts import halve_by_maximum, halve_by_maximum_of_3x3
from dctps_jax.ops.target import tracing_for


@pytest.mark.parametrize("shape", [(2, 4, 4, 3), (1, 2, 2, 5), (2, 5, 7, 2), (1, 8, 6, 1)])
@pytest.mark.parametrize("ties", [False, True])
def test_maximum_equals_the_native_one(shape, ties):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 3, shape) if ties else rng.normal(size=shape), jnp.float32)

    def native(x):
        return nnx.max_pool(x, window_shape=(2, 2), strides=(2, 2))

    ours, pull_back = jax.vjp(halve_by_maximum, x)
    expected, expected_pull_back = jax.vjp(native, x)
    np.testing.assert_array_equal(ours, expected)
    gradient = jnp.asarray(rng.normal(size=ours.shape), jnp.float32)
    np.testing.assert_array_equal(pull_back(gradient)[0], expected_pull_back(gradient)[0])


def test_other_platforms_take_the_native_one():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 4, 2)), jnp.float32)
    with tracing_for("gpu"):
        assert "reduce_window_max" in str(jax.make_jaxpr(halve_by_maximum)(x))


def test_maximum_of_overlapping_windows():
    x = np.random.default_rng(0).normal(size=(1, 6, 5, 2)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    expected = [
        [padded[0, row : row + 3, column : column + 3].max((0, 1)) for column in (0, 2, 4)] for row in (0, 2, 4)
    ]
    np.testing.assert_array_equal(halve_by_maximum_of_3x3(jnp.asarray(x))[0], np.array(expected))
