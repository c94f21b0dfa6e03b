"""The sparse part as a list of weights: products and gradients are those of the dense kernel with these weights."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dctps_jax.ops.gathered import MAX_FILLED, VECTOR, Gathered, seen_by, unfolds
from dctps_jax.ops.geometry import Geometry
from dctps_jax.ops.in_rows import InRows
from dctps_jax.ops.sparse_part import add_at, add_numbers_at, weights_at
from dctps_jax.ops.target import tracing_for
from dctps_jax.ops.work import Work
from tests.absent_tpu import text_of_program
from tests.native import jit_unoptimised, native, normal
from tests.ops.geometries import CASES

# None, some, and all weights.
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
    grad_inputs, grad_kernel = pull_back(cotangent)
    return outputs, grad_inputs, grad_kernel.ravel()[support], cotangent


def part_of(way, support, geometry, inputs_shape):
    work = Work(geometry, inputs_shape, len(support), None)
    return Gathered(work, support) if way == "gathered" else InRows(work, support)


@pytest.mark.parametrize("way", ["gathered", "in rows"])
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("case", CASES)
def test_products_and_gradients_are_those_of_the_dense_kernel(case, count, way):
    geometry, inputs, support, values = problem(case, count)

    @jit_unoptimised
    def compute(inputs, support, values):
        outputs, grad_inputs, grad_values, cotangent = by_the_dense_kernel(geometry, inputs, support, values)
        part = part_of(way, support, geometry, inputs.shape)
        found = [part.convolve(inputs, values), part.gradient_of_values(inputs, cotangent)]
        expected = [outputs, grad_values]
        if way == "in rows" or max(geometry.strides, default=1) == 1:
            found += part.gradients(inputs, cotangent, values)
            expected += [grad_inputs, grad_values]
        return found, expected

    for found, expected in zip(*compute(inputs, support, values), strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("way", "case"), [("gathered", "3x3"), ("in rows", "3x3"), ("in rows", "strides 1, 2"), ("in rows", "linear")]
)
def test_gradients_of_gradients(way, case):
    geometry, inputs, support, values = problem(case, 9)

    @jit_unoptimised
    def compute(inputs, values):
        part = part_of(way, support, geometry, inputs.shape)

        def own(inputs, values):
            gradients = part.gradients(inputs, part.convolve(inputs, values) ** 2, values)
            return sum(jnp.sum(gradient**2) for gradient in gradients)

        def expected(inputs, values):
            kernel = jnp.zeros(np.prod(geometry.kernel_shape)).at[support].set(values).reshape(geometry.kernel_shape)
            outputs, pull_back = jax.vjp(partial(native, geometry=geometry), inputs, kernel)
            grad_inputs, grad_kernel = pull_back(outputs**2)
            return jnp.sum(grad_inputs**2) + jnp.sum(grad_kernel.ravel()[support] ** 2)

        return jax.grad(own, argnums=(0, 1))(inputs, values), jax.grad(expected, argnums=(0, 1))(inputs, values)

    for found, expected in zip(*compute(inputs, values), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-8)


def largest_array(program):
    """The size of the largest array in a traced program and the programs inside it."""
    sizes = [0]
    for equation in program.eqns:
        sizes += [variable.aval.size for variable in equation.outvars]
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "jaxpr")):
            if hasattr(inner, "jaxpr"):
                sizes.append(largest_array(inner.jaxpr))
    return max(sizes)


def test_rows_do_not_grow_with_the_number_of_weights():
    geometry = Geometry((3, 3, 40, 50), (1, 1), ((1, 1), (1, 1)))
    inputs = jnp.zeros((8, 4, 4, 40))

    def largest(count):
        part = part_of("in rows", jnp.arange(count, dtype=jnp.int32), geometry, inputs.shape)

        def everything(inputs, values):
            return part.gradients(inputs, part.convolve(inputs, values), values)

        return largest_array(jax.make_jaxpr(everything)(inputs, jnp.ones(count)).jaxpr)

    assert largest(2) == largest(2000) < 8 * 6 * 6 * 50 * 2


def test_rows_of_half_precision_are_summed_in_single():
    part = part_of("in rows", jnp.arange(2, dtype=jnp.int32), Geometry((2, 1)), (1000, 2))
    inputs = jnp.ones((1000, 2), jnp.bfloat16)
    assert part.convolve(inputs, jnp.ones(2, jnp.bfloat16)).dtype == jnp.bfloat16
    gradient = part.gradient_of_values(inputs, jnp.ones((1000, 1), jnp.bfloat16))
    assert gradient.dtype == jnp.float32 and gradient.tolist() == [1000, 1000]  # bfloat16 counts to 256


@pytest.mark.parametrize("way", [Gathered, InRows])
def test_sums_by_a_product_with_ones_are_rounded_on_no_platform(way):
    """A GPU would multiply in TF32, and a TPU in bfloat16."""
    geometry, inputs, support, _ = problem("linear", 9)
    work = Work(geometry, inputs.shape, len(support), None)
    gradient = np.ones((*inputs.shape[:-1], geometry.kernel_shape[-1]))
    program = jax.make_jaxpr(lambda *arrays: way(work, jnp.asarray(support)).gradient_of_values(*arrays))
    text = str(program(inputs, gradient))
    assert 0 < text.count("dot_general[") == text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)")


def test_channels_are_gathered_before_they_are_shifted_where_there_are_few_weights():
    # With many weights the shifted channels of a row of the kernel are gathered from, with few never made.
    geometry = Geometry((3, 3, 40, 50), (1, 1), ((1, 1), (1, 1)))
    x = jnp.zeros((2, 4, 4, 40))
    row = 2 * 6 * 4 * 3 * 40

    def largest(count):
        weights = weights_at(jnp.arange(count, dtype=jnp.int32), geometry)
        return largest_array(jax.make_jaxpr(lambda x: seen_by(weights, x, geometry))(x).jaxpr)

    assert largest(10) < row <= largest(3 * 40 + 1)
    assert not unfolds(geometry, 3 * 40, 40) and unfolds(geometry, 3 * 40 + 1, 40)
    assert unfolds(geometry._replace(strides=(1, 2)), 1, 40)
    assert not unfolds(Geometry((40, 50)), 2000, 40)


def test_weights_are_where_the_support_says():
    weights = weights_at(jnp.array([0, 17, 41, 107]), Geometry((3, 3, 2, 6), groups=2))
    assert weights.tap.tolist() == [0, 1, 3, 8]
    assert weights.source.tolist() == [0, 2, 2, 3]
    assert weights.target.tolist() == [0, 5, 5, 5]


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 63, 64, 65, 100])
def test_short_lists_are_filled_up_to_whole_vectors(count):
    part = part_of("gathered", jnp.arange(20, 20 + count, dtype=jnp.int32), Geometry((3, 3, 4, 5)), ())
    assert len(part.support) == (count if count > MAX_FILLED else math.ceil(count / VECTOR) * VECTOR)
    assert (part.support[count:] == 0).all() and part.support.dtype == jnp.int32
    assert part.nnz == count


# A TPU adds whole rows.
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("positions", [[], [0], [3, 4, 11], [0, 1, 2, 3, 10, 11], list(range(12))])
def test_values_are_added_at_their_positions(positions, platform):
    values = np.arange(1.0, 1 + len(positions))
    expected = np.full(12, 0.5)
    expected[positions] += values
    with tracing_for(platform):
        found = add_at(jnp.full((2, 3, 2), 0.5), jnp.asarray(positions, jnp.int32), jnp.asarray(values))
    np.testing.assert_array_equal(found, expected.reshape(2, 3, 2))


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_values_are_rounded_to_the_dtype_of_the_array(platform):
    values, positions = jnp.array([1.001, 2.003]), jnp.array([1, 2], jnp.int32)
    with tracing_for(platform):
        found, pull_back = jax.vjp(lambda values: add_at(jnp.zeros((2, 2), jnp.bfloat16), positions, values), values)
        gradient = pull_back(jnp.ones((2, 2), jnp.bfloat16))[0]
    np.testing.assert_array_equal(found, jnp.array([[0, 1.001], [2.003, 0]], jnp.bfloat16))
    np.testing.assert_array_equal(gradient, 1)
    assert gradient.dtype == values.dtype


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_values_added_at_one_position_are_summed(platform):
    with tracing_for(platform):
        found = add_at(jnp.zeros((2, 2)), jnp.array([2, 2], jnp.int32), jnp.array([3.0, 4.0]))
    np.testing.assert_array_equal(found, [[0, 0], [7, 0]])


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("added_at", [add_at, add_numbers_at])
def test_gradients_of_added_values_are_those_at_the_positions(added_at, platform):
    positions = jnp.array([1, 4, 5], jnp.int32)

    def added(scale, values):
        return added_at(scale * jnp.arange(6.0).reshape(3, 2), positions, values)

    with tracing_for(platform):
        _, pull_back = jax.vjp(added, jnp.ones(()), jnp.ones(3))
        grad_scale, grad_values = pull_back(jnp.arange(6.0).reshape(3, 2))
        _, moved = jax.jvp(added, (jnp.ones(()), jnp.ones(3)), (jnp.ones(()), jnp.array([1.0, 2.0, 3.0])))
        program = str(jax.make_jaxpr(jax.grad(lambda values: added(1.0, values).sum()))(jnp.ones(3)))
    # Single numbers are picked out of the array's gradient, no rows.
    gathered = re.findall(r":\w+\[(\S*)\] = gather\[", program)
    assert gathered and set(gathered) == {"3"}
    np.testing.assert_array_equal(grad_values, [1, 4, 5])
    assert grad_scale == 0 + 1 + 4 + 9 + 16 + 25
    np.testing.assert_array_equal(moved, [[0, 2], [2, 3], [6, 8]])


@pytest.mark.parametrize("is_on_tpu", [True, False])
def test_a_tpu_keeps_the_layout_of_a_kernel(monkeypatch, is_on_tpu):
    """Without the rows of a TPU, its compiler brings the kernel into a flat layout: the second case shows it."""
    arrays = (((), jnp.float32), ((1100,), jnp.bfloat16), ((1100,), jnp.int32), ((8, 4, 4, 128), jnp.bfloat16))
    arguments = tuple(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in arrays)

    def layer(alpha, values, positions, inputs):
        offset = jnp.arange(9 * 128 * 128, dtype=jnp.float32).reshape(3, 3, 128, 128)
        kernel = add_at((alpha * offset).astype(jnp.bfloat16), positions, values)
        return jax.lax.conv_general_dilated(inputs, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    program = text_of_program(monkeypatch, layer, arguments, "tpu" if is_on_tpu else "cpu")
    assert (f"bf16[{9 * 128 * 128}]" not in program) == is_on_tpu
