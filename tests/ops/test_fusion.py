"""What a program asks of the compiler: the order in which an array is stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.layout import Layout, with_layout_constraint

from dctps_jax.ops.fusion import orders_are_known, stored_in_order
from dctps_jax.ops.geometry import Geometry
from dctps_jax.ops.methods import apply_kernel
from dctps_jax.ops.target import tracing_for
from dctps_jax.ops.work import Work
from tests.native import normal

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_outputs_of_a_program_are_stored_row_by_row():
    with tracing_for("cpu"):
        doubled = jax.jit(lambda x: stored_in_order(2 * x, 1, 0))(X)
    np.testing.assert_array_equal(doubled + 1, 2 * X + 1)
    assert doubled.format.layout.major_to_minor == (0, 1)


@pytest.mark.skipif(jax.__version__ != "0.10.2", reason="shows what JAX 0.10.2 does")
def test_the_output_of_a_constraint_alone_is_read_in_the_wrong_order():
    doubled = jax.jit(lambda x: with_layout_constraint(2 * x, Layout((1, 0))))(X)
    assert np.any(np.asarray(doubled + 1) != 2 * X + 1)


def test_an_array_outside_of_a_program_is_left_alone():
    array = jnp.asarray(X)
    with tracing_for("cpu"):
        assert stored_in_order(array, 1, 0) is array


SHAPES = (512, 256), (256, 128)
SUPPORTS = [np.arange(0, rows * columns, 101) for rows, columns in SHAPES]


def step(values, inputs):
    """Return the loss of two layers in rows, and all gradients."""

    def loss(values, inputs):
        outputs = inputs
        for shape, support, weights in zip(SHAPES, SUPPORTS, values, strict=True):
            work = Work(Geometry(shape), outputs.shape, len(support), None)
            outputs = jax.nn.relu(apply_kernel("per_weight_rows", work, outputs, weights, None, jnp.asarray(support)))
        return jnp.sum(outputs**2)

    return jax.value_and_grad(loss, argnums=(0, 1))(values, inputs)


def arguments(batch):
    values = [normal(seed, len(support)).astype(np.float32) for seed, support in enumerate(SUPPORTS)]
    return values, normal(2, batch, 512).astype(np.float32)


def assert_close(found, expected):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 64, 100, 256])
def test_layers_in_rows_compute_the_same_on_transposed_arrays(batch):
    expected = jax.jit(step)(*arguments(batch))
    with tracing_for("cpu"):
        found = jax.jit(step)(*arguments(batch))
    assert_close(found, expected)


def test_a_batch_of_steps_computes_the_same_on_transposed_arrays():
    values, inputs = arguments(12)
    inputs = inputs.reshape(3, 4, 512)
    with tracing_for("cpu"):
        found = jax.jit(jax.vmap(step, (None, 0)))(values, inputs)
    for index in range(3):
        assert_close([leaf[index] for leaf in jax.tree.leaves(found)], jax.jit(step)(values, inputs[index]))


def test_layers_in_rows_hand_on_transposed_arrays():
    def bytes_accessed():
        return jax.jit(step).lower(*arguments(100)).compile().cost_analysis()["bytes accessed"]

    plain = bytes_accessed()
    with tracing_for("cpu"):
        assert bytes_accessed() < 0.95 * plain


def test_a_program_that_may_be_exported_asks_for_no_order():
    program = jax.export.export(jax.jit(step))(*arguments(4))
    assert program.serialize()
    with tracing_for("cpu"), pytest.raises(ValueError, match="LayoutConstraint"):
        jax.export.export(jax.jit(step))(*arguments(4)).serialize()


def test_on_a_mesh_with_explicit_axes_a_program_asks_for_no_order():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh), tracing_for("cpu"):
        assert not orders_are_known()
    with tracing_for("cpu"):
        assert orders_are_known()
