"""The offset by its factors: equal to the convolution with D and to its transpose, without an array of D's size."""

import math
from functools import partial
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dctps_jax.offsets import dct
from dctps_jax.ops import factored_offset
from dctps_jax.ops.factored_offset import offset_convolution, transposed_offset_convolution
from dctps_jax.ops.geometry import Geometry
from tests.native import jit_unoptimised, native, normal

# Spatial shape of the inputs, shape of the kernel, padding.
CASES = {
    "same": ((6, 5), (3, 3, 4, 5), ((1, 1), (1, 1))),
    "padded first": ((16, 16), (3, 3, 2, 3), ((1, 1), (1, 1))),
    "valid": ((6, 5), (3, 2, 4, 5), ((0, 0), (0, 0))),
    "asymmetric": ((4, 5), (3, 3, 4, 5), ((0, 2), (1, 0))),
    "cropping": ((7, 6), (3, 3, 4, 5), ((-1, 0), (0, -2))),
    "cropping and padding": ((4, 6), (2, 3, 4, 5), ((-1, 2), (1, -2))),
    "padded beyond the kernel": ((3, 2), (3, 2, 4, 5), ((3, 0), (4, 5))),
    "even size": ((4, 4), (2, 4, 4, 5), ((1, 0), (2, 1))),
    "flat kernel": ((4, 5), (1, 3, 4, 5), ((0, 0), (1, 1))),
    "map smaller than the kernel": ((2, 1), (5, 3, 4, 5), ((2, 2), (1, 1))),
    "one position": ((1, 1), (3, 3, 4, 5), ((1, 1), (1, 1))),
    "no output": ((2, 5), (3, 3, 4, 5), ((0, 0), (0, 0))),
    "more outputs than inputs": ((3, 3), (3, 3, 2, 40), ((1, 1), (1, 1))),
    "one output": ((3, 3), (3, 3, 6, 1), ((1, 1), (1, 1))),
    "one dimension": ((7,), (3, 4, 5), ((1, 1),)),
    "one dimension, even, cropping": ((9,), (4, 6, 30), ((-2, 1),)),
    "three dimensions": ((3, 4, 3), (2, 3, 3, 4, 5), ((1, 0), (1, 1), (2, 0))),
}


@pytest.fixture(autouse=True, scope="module")
def double_precision():
    with jax.enable_x64(True):
        yield


def with_the_offset(inputs, geometry):
    return native(inputs, jnp.asarray(dct.conv_kernel(geometry.kernel_shape), inputs.dtype), geometry)


def factors_of(geometry):
    factors = dct.centred_factors(geometry.kernel_shape)
    assert factors is not None
    return factors


def assert_equals_the_native_convolution(spatial, kernel_shape, pads, is_whole):
    """``is_whole``: one product takes all channels, as where they are few."""
    geometry = Geometry(kernel_shape, (1,) * len(spatial), pads)
    factors = factors_of(geometry)

    @jit_unoptimised
    def compute(inputs):
        expected, pull_back = jax.vjp(partial(with_the_offset, geometry=geometry), inputs)
        cotangent = jnp.asarray(normal(1, *expected.shape))
        back = transposed_offset_convolution(cotangent, geometry, factors, spatial)
        return (offset_convolution(inputs, geometry, factors), expected), (back, *pull_back(cotangent))

    with patch.object(factored_offset, "MAX_WHOLE", kernel_shape[-2] if is_whole else 0):
        compared = compute(normal(0, 2, *spatial, kernel_shape[-2]))
    for found, expected in compared:
        assert found.shape == expected.shape and found.dtype == jnp.float64
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("is_whole", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_convolution_with_the_offset(case, is_whole):
    assert_equals_the_native_convolution(*CASES[case], is_whole=is_whole)


def test_the_cases_pad_before_and_after_the_products():
    growths = [
        math.prod(length + sum(pair) for length, pair in zip(spatial, pads, strict=True)) / math.prod(spatial)
        for spatial, _, pads in CASES.values()
    ]
    assert any(1 < growth <= factored_offset.MAX_PADDED_GROWTH for growth in growths)
    assert any(growth > factored_offset.MAX_PADDED_GROWTH for growth in growths)


@settings(max_examples=30, deadline=None)
@given(
    axes=st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(-1, 3), st.integers(-1, 3)), min_size=1, max_size=3
    ),
    half=st.integers(1, 3),
    out_features=st.integers(1, 40),
    is_whole=st.booleans(),
)
def test_any_geometry(axes, half, out_features, is_whole):
    spatial, size, low, high = zip(*axes, strict=True)
    assume(math.prod(size) > 1)
    # Cropping below nothing is refused by every convolution.
    assume(all(length + sum(pair) >= 0 for length, *pair in zip(spatial, low, high, strict=True)))
    pads = tuple(zip(low, high, strict=True))
    assert_equals_the_native_convolution(spatial, (*size, 2 * half, out_features), pads, is_whole=is_whole)


def largest_array(function, *arguments):
    """The size of the largest array in the traced program of ``function``, constants included."""
    program = jax.make_jaxpr(function)(*arguments)
    computed = [variable.aval.size for equation in program.eqns for variable in equation.outvars]
    return max(*computed, *(np.size(const) for const in program.consts))


@pytest.mark.parametrize(("channels", "tables"), [(32, 2), (64, 1)])
def test_no_array_has_the_size_of_the_kernel(channels, tables):
    geometry = Geometry((3, 3, channels, channels), (1, 1), ((1, 1), (1, 1)))
    x = jnp.zeros((1, 2, 2, channels))
    factors = factors_of(geometry)
    size = tables * channels * channels
    assert largest_array(lambda x: offset_convolution(x, geometry, factors), x) <= size
    assert largest_array(lambda x: transposed_offset_convolution(x, geometry, factors, (2, 2)), x) <= size
    assert largest_array(lambda x: with_the_offset(x, geometry), x) == 9 * channels * channels


@pytest.mark.parametrize(("dtype", "error"), [(jnp.float32, 2e-6), (jnp.bfloat16, 3e-2)])
def test_other_precisions_are_as_exact_as_they_can_be(dtype, error):
    geometry = Geometry((3, 3, 64, 64), (1, 1), ((1, 1), (1, 1)))
    inputs = jnp.asarray(normal(0, 2, 4, 4, 64))
    expected = with_the_offset(inputs, geometry)
    outputs = offset_convolution(inputs.astype(dtype), geometry, factors_of(geometry))
    assert outputs.dtype == dtype
    assert np.linalg.norm(outputs.astype(jnp.float64) - expected) < error * np.linalg.norm(expected)
