"""The gradient of the inputs of convolutions with strides, by phases.

``test_convolution.py`` compares the convolution and its gradients' gradients with the native ones.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dctps_jax.ops import strided
from dctps_jax.ops.convolution import convolve
from dctps_jax.ops.geometry import Geometry
from dctps_jax.ops.target import tracing_for
from tests.native import jit_unoptimised, native, normal


def gradients(geometry, spatial, dtype=jnp.float64):
    """The gradient here, and the native one."""
    inputs = jax.ShapeDtypeStruct((2, *spatial, geometry.kernel_shape[-2]), dtype)
    kernel = jnp.asarray(normal(0, *geometry.kernel_shape), dtype)
    cotangent = jnp.asarray(normal(1, 2, *geometry.output_spatial(spatial), geometry.kernel_shape[-1]), dtype)

    @jit_unoptimised
    def compute(cotangent, kernel):
        expected = jax.linear_transpose(lambda x: native(x, kernel, geometry), inputs)(cotangent)[0]
        return strided.gradient_of_inputs(cotangent, kernel, geometry, inputs), expected

    return compute(cotangent, kernel)


@pytest.mark.parametrize(
    ("size", "strides", "pads", "spatial"),
    [
        ((3, 3), (2, 2), ((1, 1), (1, 1)), (8, 6)),
        ((3, 3), (2, 2), ((0, 1), (0, 1)), (7, 8)),
        ((3, 2), (1, 3), ((2, 0), (0, 1)), (5, 9)),
        ((2, 2), (3, 3), ((0, 0), (1, 0)), (8, 9)),  # some inputs are seen by no output
        ((5, 3), (2, 2), ((-1, 2), (3, -2)), (9, 8)),
        ((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 2)),
        ((4,), (3,), ((1, 2),), (8,)),
        ((2, 1, 3), (2, 1, 2), ((1, 0), (0, 0), (1, 1)), (3, 2, 4)),
    ],
)
def test_equals_the_native_gradient(size, strides, pads, spatial):
    with jax.enable_x64(True):
        found, expected = gradients(Geometry((*size, 4, 3), strides, pads), spatial)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), rank=st.integers(1, 2))
def test_any_geometry(data, rank):
    def draw(low, high):
        return tuple(data.draw(st.integers(low, high)) for _ in range(rank))

    size, strides, spatial = draw(1, 4), draw(1, 4), draw(1, 7)
    geometry = Geometry((*size, 2, 3), strides, tuple(zip(draw(-1, 3), draw(-1, 3), strict=True)))
    if min(geometry.output_spatial(spatial)) >= 1:
        with jax.enable_x64(True):
            found, expected = gradients(geometry, spatial)
            np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_half_precision_is_summed_in_single():
    geometry = Geometry((3, 3, 4, 64), (2, 2), ((1, 1), (1, 1)))
    found, _ = gradients(geometry, (8, 8), jnp.bfloat16)
    _, expected = gradients(geometry, (8, 8), jnp.float32)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=0, atol=0.02 * float(abs(expected).max()))


@pytest.mark.parametrize(
    ("kernel", "strides", "groups", "platform", "taken"),
    [
        ((3, 3, 4, 6), (2, 2), 1, "cpu", True),
        ((3, 3, 4, 6), (1, 2), 1, "cpu", True),
        ((3, 3, 4, 6), (1, 1), 1, "cpu", False),
        ((1, 1, 4, 6), (2, 2), 1, "cpu", False),
        ((3, 3, 2, 6), (2, 2), 2, "cpu", False),
        ((3, 3, 4, 6), (2, 2), 1, "tpu", False),
    ],
)
def test_where_it_is_taken(kernel, strides, groups, platform, taken):
    geometry = Geometry(kernel, strides, ((1, 1), (1, 1)), groups)
    inputs = jnp.zeros((2, 9, 9, 4))

    def gradient(inputs, kernel):
        return jax.grad(lambda inputs: convolve(inputs, kernel, geometry).sum())(inputs)

    with tracing_for(platform):
        assert strided.is_taken(inputs, geometry) == taken
        # The native one spreads the outputs' gradients with zeros in between.
        is_spread = f"lhs_dilation={strides}" in str(jax.make_jaxpr(gradient)(inputs, jnp.zeros(kernel)))
    assert is_spread == (not taken and kernel[0] > 1)
