"""The sparse part as a list of weights: products and gradients equal those of the dense kernel with these weights."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dctps_jax.geometry import Geometry
from dctps_jax.sparse_part import (
    MAX_FILLED,
    VECTOR,
    add_at,
    convolve_sparse,
    gradient_of_values,
    seen_by,
    transpose_sparse,
    unfolds,
    weights_at,
)
from tests.native import jit_unoptimised, native, normal

# The geometry and the spatial shape of the inputs.
CASES = {
    "3x3": (Geometry((3, 3, 4, 5), (1, 1), ((1, 1), (1, 1))), (5, 6)),
    "1x1": (Geometry((1, 1, 4, 5), (1, 1), ((0, 0), (0, 0))), (3, 2)),
    "valid": (Geometry((2, 3, 4, 5), (1, 1), ((0, 0), (0, 0))), (5, 6)),
    "asymmetric": (Geometry((3, 2, 4, 5), (1, 1), ((2, 0), (0, 1))), (4, 3)),
    "cropping": (Geometry((3, 3, 4, 5), (1, 1), ((-1, 0), (1, -2))), (6, 7)),
    "small map": (Geometry((5, 3, 4, 5), (1, 1), ((2, 2), (1, 1))), (2, 1)),
    "grouped": (Geometry((3, 3, 2, 6), (1, 1), ((1, 1), (1, 1)), 2), (4, 5)),
    "depthwise": (Geometry((3, 3, 1, 6), (1, 1), ((1, 1), (1, 1)), 6), (4, 5)),
    "depthwise, two each": (Geometry((2, 3, 1, 6), (1, 1), ((0, 1), (1, 1)), 3), (4, 5)),
    "linear": (Geometry((7, 5)), ()),
    "one dimension": (Geometry((3, 4, 5), (1,), ((1, 1),)), (6,)),
    "three dimensions": (Geometry((2, 1, 3, 4, 5), (1, 1, 1), ((1, 0), (0, 0), (1, 1))), (3, 2, 4)),
    "strides 2, 2": (Geometry((3, 3, 4, 5), (2, 2), ((1, 1), (1, 1))), (5, 6)),
    "strides 1, 2": (Geometry((3, 3, 4, 5), (1, 2), ((1, 1), (0, 1))), (5, 6)),
    "strides 2, 1": (Geometry((2, 3, 4, 5), (2, 1), ((0, 0), (1, 1))), (5, 6)),
    "1x1, strides 2, 2": (Geometry((1, 1, 4, 5), (2, 2), ((0, 0), (0, 0))), (5, 6)),
    "grouped, strides 2, 1": (Geometry((3, 3, 2, 6), (2, 1), ((1, 1), (1, 1)), 2), (5, 5)),
    "depthwise, strides 1, 2": (Geometry((3, 3, 1, 6), (1, 2), ((1, 1), (1, 1)), 6), (5, 5)),
    "one dimension, strides 3": (Geometry((4, 4, 5), (3,), ((1, 2),)), (8,)),
}
WITHOUT_STRIDES = [name for name, (geometry, _) in CASES.items() if max(geometry.strides, default=1) == 1]
# None, some (of "3x3" fewer than a row of the kernel has channels, 12), and all weights.
COUNTS = [0, 9, None]


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def problem(case, count):
    """Return geometry, inputs, support and values of a case."""
    geometry, spatial = CASES[case]
    *_, in_features, _ = geometry.kernel_shape
    support = np.sort(np.random.default_rng(1).permutation(np.prod(geometry.kernel_shape))[:count]).astype(np.int32)
    return geometry, normal(0, 2, *spatial, in_features * geometry.groups), support, normal(2, support.size)


def by_the_dense_kernel(geometry, inputs, support, values):
    """Return outputs, gradients of inputs and values, and the outputs' gradient that leads to these."""
    kernel = jnp.zeros(np.prod(geometry.kernel_shape)).at[support].set(values).reshape(geometry.kernel_shape)
    outputs, pull_back = jax.vjp(partial(native, geometry=geometry), inputs, kernel)
    cotangent = jnp.asarray(normal(3, *outputs.shape))
    to_inputs, to_kernel = pull_back(cotangent)
    return outputs, to_inputs, to_kernel.ravel()[support], cotangent


def seen_literally(geometry, inputs, support, outputs):
    """One weight after the other: its channel of the padded inputs, from its position on."""
    *_, in_features, out_features = geometry.kernel_shape
    padded = np.pad(inputs, [(0, 0), *((max(low, 0), max(high, 0)) for low, high in geometry.pads), (0, 0)])
    seen = np.zeros((*outputs.shape[:-1], support.size))
    for number, place in enumerate(zip(*np.unravel_index(support, geometry.kernel_shape), strict=True)):
        *position, channel, target = place
        starts = [at - min(low, 0) for at, (low, _) in zip(position, geometry.pads, strict=True)]
        window = [
            slice(start, start + stride * (length - 1) + 1, stride)
            for start, stride, length in zip(starts, geometry.strides, outputs.shape[1:-1], strict=True)
        ]
        group = target // (out_features // geometry.groups)
        seen[..., number] = padded[:, *window, channel + group * in_features]
    return seen


def of_values_at(seen, across, channels, support):
    """The gradient of the values that there are; what short lists are filled up by has none."""
    return gradient_of_values(seen, across, channels)[: len(support)]


def assert_close(found, expected):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("case", CASES)
def test_forward_and_the_gradient_of_the_values(case, count):
    geometry, inputs, support, values = problem(case, count)

    @jit_unoptimised
    def compute(inputs, support, values):
        expected, _, of_values, cotangent = by_the_dense_kernel(geometry, inputs, support, values)
        weights = weights_at(support, geometry)
        seen = seen_by(weights, inputs, geometry)
        outputs = convolve_sparse(inputs, values, weights, geometry)
        return seen, (outputs, expected), (of_values_at(seen, cotangent, weights.target, support), of_values)

    seen, *pairs = compute(inputs, support, values)
    for found, expected in pairs:
        assert_close(found, expected)
    assert_close(seen[..., : support.size], seen_literally(geometry, inputs, support, outputs=pairs[0][0]))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("case", WITHOUT_STRIDES)
def test_backward_and_the_gradient_of_the_values(case, count):
    geometry, inputs, support, values = problem(case, count)

    @jit_unoptimised
    def compute(inputs, support, values):
        _, expected, of_values, cotangent = by_the_dense_kernel(geometry, inputs, support, values)
        weights = weights_at(support, geometry)
        to_inputs, seen = transpose_sparse(cotangent, values, weights, geometry)
        return (to_inputs, expected), (of_values_at(seen, inputs, weights.source, support), of_values)

    for found, expected in compute(inputs, support, values):
        assert_close(found, expected)


def largest_array(function, *arguments):
    """The size of the largest array in the traced program of ``function``."""
    program = jax.make_jaxpr(function)(*arguments)
    return max(variable.aval.size for equation in program.eqns for variable in equation.outvars)


def test_channels_are_gathered_before_they_are_shifted_where_there_are_few_weights():
    # With many weights the shifted channels of a row of the kernel are gathered from, with few never made.
    geometry = Geometry((3, 3, 40, 50), (1, 1), ((1, 1), (1, 1)))
    x = jnp.zeros((2, 4, 4, 40))
    row = 2 * 6 * 4 * 3 * 40

    def largest(count):
        weights = weights_at(jnp.arange(count, dtype=jnp.int32), geometry)
        return largest_array(lambda x: seen_by(weights, x, geometry), x)

    assert largest(10) < row <= largest(3 * 40 + 1)
    assert not unfolds(geometry, 3 * 40, 40) and unfolds(geometry, 3 * 40 + 1, 40)
    assert unfolds(geometry._replace(strides=(1, 2)), 1, 40)
    assert not unfolds(Geometry((40, 50)), 2000, 40)


def test_weights_are_where_the_support_says():
    weights = weights_at(jnp.array([0, 17, 41, 107]), Geometry((3, 3, 2, 6), groups=2))
    assert weights.position[:4].tolist() == [0, 1, 3, 8]
    assert weights.source[:4].tolist() == [0, 2, 2, 3]
    assert weights.target[:4].tolist() == [0, 5, 5, 5]


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 63, 64, 65, 100])
def test_short_lists_are_filled_up_to_whole_vectors(count):
    weights = weights_at(jnp.arange(20, 20 + count, dtype=jnp.int32), Geometry((3, 3, 4, 5)))
    lengths = {len(part) for part in weights}
    assert lengths == {count if count > MAX_FILLED else math.ceil(count / VECTOR) * VECTOR}
    assert all((part[count:] == 0).all() and part.dtype == jnp.int32 for part in weights)


@pytest.mark.parametrize("positions", [[], [0], [3, 4, 11], list(range(12))])
def test_values_are_added_at_their_positions(positions):
    values = np.arange(1.0, 1 + len(positions))
    expected = np.zeros(12)
    expected[positions] = values
    found = add_at(jnp.zeros((2, 3, 2)), jnp.asarray(positions, jnp.int32), jnp.asarray(values))
    np.testing.assert_array_equal(found, expected.reshape(2, 3, 2))


def test_gradients_of_added_values_are_those_at_the_positions():
    positions = jnp.array([1, 4, 5], jnp.int32)
    _, pull_back = jax.vjp(lambda values: add_at(jnp.zeros((2, 3)), positions, values), jnp.ones(3))
    np.testing.assert_array_equal(*pull_back(jnp.arange(6.0).reshape(2, 3)), [1, 4, 5])
