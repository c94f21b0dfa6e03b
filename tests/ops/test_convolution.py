"""The CPU's own ways of a convolution: equal to the native one, gradients too, and taken where they should be."""

import math
import re
from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from dctps_jax.ops import convolution
from dctps_jax.ops.convolution import convolve
from dctps_jax.ops.geometry import Geometry
from dctps_jax.ops.target import tracing_for
from tests.native import jit_unoptimised, native, normal


def geometry_of(inputs, kernel, strides, padding, groups):
    """The geometry as a layer makes it, with the padding as pairs."""
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(inputs.shape[1:-1], kernel.shape[:-2], strides, padding)
    return Geometry(kernel.shape, strides, tuple((low, high) for low, high in padding), groups)


def is_native(inputs, kernel, *rest):
    """Whether ``convolve`` asks for the native operation."""
    geometry = geometry_of(inputs, kernel, *rest)
    return "conv_general_dilated" in str(jax.make_jaxpr(lambda x, k: convolve(x, k, geometry))(inputs, kernel))


def assert_equal_with_gradients(inputs, kernel, *rest):
    geometry = geometry_of(inputs, kernel, *rest)

    @jit_unoptimised
    def compute(inputs, kernel):
        expected, expected_pull_back = jax.vjp(partial(native, geometry=geometry), inputs, kernel)
        outputs, pull_back = jax.vjp(partial(convolve, geometry=geometry), inputs, kernel)
        cotangent = jnp.asarray(normal(1, *expected.shape))
        return (outputs, *pull_back(cotangent)), (expected, *expected_pull_back(cotangent))

    for found, expected in zip(*compute(inputs, kernel), strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)


def arrays(*shapes):
    return [jnp.asarray(normal(seed, *shape)) for seed, shape in enumerate(shapes)]


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
        ((2, 7, 6, 4), (3, 3, 1, 4), (1, 1), ((-1, 2), (3, -2)), 4),
        ((2, 7, 4), (3, 1, 4), (3,), ((1, 0),), 4),
        ((2, 2, 2, 2, 4), (3, 3, 3, 4, 3), (1, 1, 1), ((1, 1), (0, 1), (1, 0)), 1),
    ],
)
def test_equals_the_native_convolution(inputs, kernel, strides, padding, groups):
    with jax.enable_x64(True):
        inputs, kernel = arrays(inputs, kernel)
        assert not is_native(inputs, kernel, strides, padding, groups)
        assert_equal_with_gradients(inputs, kernel, strides, padding, groups)


@pytest.mark.parametrize(
    ("inputs", "kernel", "strides", "padding", "groups"),
    [
        ((2, 5, 6, 4), (3, 3, 4, 3), (1, 1), "SAME", 1),
        ((2, 5, 6, 4), (3, 2, 4, 3), (1, 1), "VALID", 1),
        ((3, 5, 6, 4), (3, 3, 4, 3), (1, 1), ((0, 2), (1, 0)), 1),
        ((2, 7, 6, 4), (3, 3, 4, 3), (1, 1), ((-1, 1), (2, -2)), 1),
        ((2, 2, 3, 4), (3, 2, 4, 3), (1, 1), ((3, 4), (2, 2)), 1),
        ((2, 5, 6, 4), (3, 3, 4, 3), (2, 1), "SAME", 1),
        ((2, 5, 6, 4), (3, 3, 2, 6), (1, 1), "SAME", 2),
        ((2, 7, 4), (3, 4, 3), (1,), ((1, 1),), 1),
        ((2, 3, 4, 5, 4), (2, 3, 1, 4, 3), (1, 1, 1), ((1, 0), (1, 1), (0, 0)), 1),
        # Four or two columns at a time; the last ones have too many channels or an odd number of columns for it.
        ((2, 9, 12, 3), (5, 5, 3, 6), (1, 1), "VALID", 1),
        ((2, 9, 10, 3), (5, 5, 3, 6), (1, 1), "VALID", 1),
        ((2, 5, 8, 7), (2, 3, 7, 16), (1, 1), ((0, 2), (-1, 3)), 1),
        ((2, 24, 3), (4, 3, 2), (1,), ((2, 1),), 1),
        ((2, 3, 4, 12), (2, 2, 12, 12), (1, 1), "SAME", 1),
        ((2, 3, 7, 3), (3, 3, 3, 6), (1, 1), "SAME", 1),
    ],
)
def test_gradients_of_native_convolutions(inputs, kernel, strides, padding, groups):
    with jax.enable_x64(True):
        inputs, kernel = arrays(inputs, kernel)
        assert is_native(inputs, kernel, strides, padding, groups)
        assert_equal_with_gradients(inputs, kernel, strides, padding, groups)


@pytest.mark.parametrize(
    ("kernel", "strides", "groups"),
    [
        ((3, 3, 4, 3), (1, 1), 1),
        ((3, 3, 1, 4), (1, 1), 4),
        ((1, 1, 4, 3), (1, 1), 1),
        ((5, 5, 4, 3), (1, 1), 1),
        ((2, 2, 4, 3), (2, 1), 1),
        ((1, 1, 6, 3), (1, 1), 1),
    ],
)
def test_gradients_have_gradients(kernel, strides, groups):
    with jax.enable_x64(True):
        inputs, kernel = arrays((2, 5, 6, groups * kernel[-2]), kernel)
        geometry = geometry_of(inputs, kernel, strides, "VALID", groups)

        def twice(convolution, *point):
            """Return a Hessian's product with a direction, forward over reverse and reverse over reverse."""
            gradient = jax.grad(lambda *point: jnp.sin(convolution(*point, geometry)).sum(), argnums=(0, 1))
            direction = tuple(jnp.flip(array) for array in point)
            return jax.jvp(gradient, point, direction)[1], jax.vjp(gradient, *point)[1](direction)

        @jit_unoptimised
        def compute(*point):
            return twice(convolve, *point), twice(native, *point)

        for found, expected in zip(*map(jax.tree.leaves, compute(inputs, kernel)), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)


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
        if is_native(inputs, kernel, strides, padding, groups):
            outputs = geometry_of(inputs, kernel, strides, padding, groups).output_spatial(spatial)
            assert min(outputs) < 1 or math.prod(outputs) > convolution.MAX_PATCH_POSITIONS
        else:
            assert_equal_with_gradients(inputs, kernel, strides, padding, groups)


def test_the_rest_is_native():
    inputs, kernel = arrays((2, 8, 8, 16), (3, 3, 16, 9))
    assert is_native(inputs, kernel, (1, 1), "SAME", 1)
    assert is_native(inputs[..., :4], kernel[:, :, :2, :4], (1, 1), "SAME", 2)
    assert is_native(inputs[:0], kernel[:1, :1], (1, 1), "SAME", 1)
    assert not is_native(inputs, kernel[:1, :1], (1, 1), "SAME", 1)
    with tracing_for("tpu"):
        assert is_native(inputs, kernel[:1, :1], (1, 1), "SAME", 1)


@pytest.mark.parametrize("differentiate", ["forward", "reverse", "transpose"])
def test_products_are_differentiated_in_every_way(differentiate):
    geometry = Geometry((1, 1, 6, 3), (1, 1), ((0, 0), (0, 0)))
    with jax.enable_x64(True):
        inputs, kernel = arrays((2, 4, 5, 6), (1, 1, 6, 3))

        def derivative(convolution):
            if differentiate == "forward":
                return jax.jvp(lambda *point: convolution(*point, geometry), (inputs, kernel), (inputs + 1, kernel - 1))
            if differentiate == "reverse":
                outputs, pull_back = jax.vjp(lambda *point: convolution(*point, geometry), inputs, kernel)
                return pull_back(outputs)
            return jax.linear_transpose(lambda kernel: convolution(inputs, kernel, geometry), kernel)(inputs[..., :3])

        for found, expected in zip(derivative(convolve), derivative(native), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("inputs", "kernel"), [((8,), (8, 4)), ((5, 5, 8), (1, 1, 8, 4)), ((2, 2, 8), (3, 3, 8, 4))])
def test_a_batch_of_any_size_is_exported(inputs, kernel):
    """The number of rows is then a symbol, which cannot be compared with the number of features."""
    kernel = jnp.asarray(normal(0, *kernel), jnp.float32)
    geometry = Geometry(kernel.shape, (1,) * (kernel.ndim - 2), ((1, 1),) * (kernel.ndim - 2))

    def gradient(inputs):
        return jax.grad(lambda kernel: convolve(inputs, kernel, geometry).sum())(kernel)

    batch = jax.export.symbolic_shape("batch")
    exported = jax.export.export(jax.jit(gradient))(jax.ShapeDtypeStruct((*batch, *inputs), jnp.float32))
    example = jnp.asarray(normal(1, 3, *inputs), jnp.float32)
    np.testing.assert_allclose(exported.call(example), gradient(example), rtol=1e-5, atol=1e-5)


def test_without_spatial_dimensions_it_is_a_product():
    with jax.enable_x64(True):
        inputs, kernel = arrays((3, 4), (4, 5))
        outputs = convolve(inputs, kernel, Geometry(kernel.shape))
        np.testing.assert_allclose(outputs, np.asarray(inputs) @ np.asarray(kernel), rtol=1e-12)


@pytest.mark.parametrize(
    ("rows", "in_features", "out_features", "factor"),
    [(16, 8, 4, "outputs"), (16, 4, 8, "inputs"), (4, 8, 4, "inputs")],
)
def test_the_smaller_factor_of_a_gradient_is_transposed(rows, in_features, out_features, factor):
    """A product that contracts the first axis of both factors transposes the one on the left."""
    inputs, kernel = arrays((rows, 1, 1, in_features), (1, 1, in_features, out_features))
    geometry = Geometry(kernel.shape, (1, 1), ((0, 0), (0, 0)))

    def gradient(inputs, kernel, cotangent):
        return jax.vjp(partial(convolve, inputs, geometry=geometry), kernel)[1](cotangent)[0]

    cotangent = jnp.ones((rows, 1, 1, out_features), inputs.dtype)
    text = jax.jit(gradient).lower(inputs, kernel, cotangent).compile().as_text() or ""
    made = {"inputs": (in_features, out_features), "outputs": (out_features, in_features)}[factor]
    found = re.findall(r"= f32\[(\d+),(\d+)\]\S* dot\(", text)
    assert found == [tuple(map(str, made))]


@pytest.mark.parametrize(
    ("spatial", "size", "strides", "pads", "outputs"),
    [
        ((8, 8), (3, 3), (1, 1), ((1, 1), (1, 1)), (8, 8)),
        ((8, 7), (3, 2), (2, 3), ((0, 1), (2, 0)), (4, 3)),
        ((9,), (4,), (1,), ((-1, 0),), (5,)),
        ((2, 5), (3, 3), (1, 1), ((0, 0), (0, 0)), (0, 3)),
        ((1, 5), (3, 3), (1, 1), ((0, 0), (0, 0)), (0, 3)),
        ((), (), (), (), ()),
    ],
)
def test_the_shape_of_the_outputs(spatial, size, strides, pads, outputs):
    assert Geometry((*size, 1, 1), strides, pads).output_spatial(spatial) == outputs


def test_the_gradient_of_the_inputs_is_a_convolution_with_the_transposed_padding():
    geometry = Geometry((3, 2, 4, 5), (1, 1), ((0, 1), (2, -1)))
    back = geometry._replace(pads=geometry.transposed_pads())
    assert back.pads == ((2, 1), (-1, 2))
    assert back.output_spatial(geometry.output_spatial((6, 7))) == (6, 7)
    assert back.transposed_pads() == geometry.pads
