"""The CPU's own ways of a convolution: equal to the native one, gradients too, and taken where they should be."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from dctps_jax import convolution
from dctps_jax.convolution import fast_convolution


def native(inputs, kernel, strides, padding, groups):
    return lax.conv_general_dilated(
        inputs, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def assert_equal_with_gradients(inputs, kernel, strides, padding, groups):
    def ours(inputs, kernel):
        return fast_convolution(inputs, kernel, strides, padding, groups, None)

    def theirs(inputs, kernel):
        return native(inputs, kernel, strides, padding, groups)

    outputs, pull_back = jax.vjp(ours, inputs, kernel)
    expected, expected_pull_back = jax.vjp(theirs, inputs, kernel)
    assert outputs.shape == expected.shape
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=outputs.shape))
    for one, other in zip((outputs, *pull_back(cotangent)), (expected, *expected_pull_back(cotangent)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]


@pytest.mark.parametrize(
    ("inputs", "kernel", "strides", "padding", "groups"),
    [
        ((2, 5, 6, 4), (1, 1, 4, 3), (1, 1), "VALID", 1),
        ((2, 5, 6, 4), (1, 1, 4, 3), (2, 1), "SAME", 1),
        ((2, 5, 6, 4), (1, 1, 4, 3), (2, 2), ((1, 0), (0, 2)), 1),
        ((2, 5, 6, 4), (1, 1, 4, 3), (1, 1), ((-1, 0), (0, -2)), 1),
        ((2, 2, 2, 4), (3, 3, 4, 5), (1, 1), ((1, 1), (1, 1)), 1),
        ((2, 1, 1, 4), (3, 3, 4, 5), (1, 1), "SAME", 1),
        ((2, 5, 5, 4), (5, 5, 4, 5), (1, 1), "VALID", 1),
        ((2, 4, 4, 4), (3, 2, 4, 5), (2, 2), "SAME", 1),
        ((2, 5, 6, 4), (3, 3, 1, 4), (1, 1), ((1, 1), (1, 1)), 4),
        ((2, 5, 6, 4), (3, 3, 1, 4), (2, 2), ((1, 1), (1, 1)), 4),
        ((2, 5, 6, 4), (3, 2, 1, 4), (1, 2), "SAME", 4),
        ((2, 5, 6, 4), (1, 1, 1, 4), (1, 1), "VALID", 4),
    ],
)
def test_equals_the_native_convolution(inputs, kernel, strides, padding, groups):
    with jax.enable_x64(True):
        assert_equal_with_gradients(*arrays(inputs, kernel), strides, padding, groups)


@settings(max_examples=15, deadline=None)
@given(
    spatial=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.sampled_from(["SAME", "VALID", "SAME_LOWER", ((1, 2), (0, 1)), ((2, 2), (2, 2))]),
    depthwise=st.booleans(),
)
def test_any_geometry(spatial, size, strides, padding, depthwise):
    with jax.enable_x64(True):
        inputs, kernel = arrays((2, *spatial, 3), (*size, 1 if depthwise else 3, 3))
        groups = 3 if depthwise else 1
        outputs = native(inputs, kernel, strides, padding, groups)
        if fast_convolution(inputs, kernel, strides, padding, groups, None) is None:
            assert outputs.size == 0 or math.prod(outputs.shape[1:3]) > convolution.MAX_PATCH_POSITIONS
        else:
            assert_equal_with_gradients(inputs, kernel, strides, padding, groups)


def test_the_rest_is_native(monkeypatch):
    inputs, kernel = arrays((2, 8, 8, 4), (3, 3, 4, 5))
    assert fast_convolution(inputs, kernel, (1, 1), "SAME", 1, None) is None
    assert fast_convolution(inputs, kernel[:, :, :2], (1, 1), "SAME", 2, None) is None
    assert fast_convolution(inputs[:0], kernel[:1, :1], (1, 1), "SAME", 1, None) is None
    assert fast_convolution(inputs, kernel[:1, :1], (1, 1), "SAME", 1, None) is not None
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert fast_convolution(inputs, kernel[:1, :1], (1, 1), "SAME", 1, None) is None
