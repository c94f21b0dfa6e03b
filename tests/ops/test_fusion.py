"""What a program asks of the compiler: the order in which an array is stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint

from dctps_jax import DCTpSLinear
from dctps_jax.ops.fusion import stored_in_order
from dctps_jax.ops.target import tracing_for

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


def perceptron():
    """Return a function of two layers in rows, and its inputs."""
    layers = []
    for inputs, outputs in ((512, 256), (256, 128)):
        support = np.arange(0, inputs * outputs, 101)
        layer = DCTpSLinear(inputs, outputs, offset=None, support=support, rngs=nnx.Rngs(0))
        layer.method = "per_weight_rows"
        layers += [layer, nnx.relu]
    return nnx.Sequential(*layers), jnp.ones((100, 512))


def test_layers_in_rows_hand_on_transposed_arrays():
    network, inputs = perceptron()

    def bytes_accessed():
        return jax.jit(network).lower(inputs).compile().cost_analysis()["bytes accessed"]

    plain = bytes_accessed()
    with tracing_for("cpu"):
        assert bytes_accessed() < 0.9 * plain
        in_order = jax.jit(network)(inputs)
    np.testing.assert_allclose(in_order, network(inputs), rtol=1e-6)


def test_a_program_that_may_be_exported_asks_for_no_order():
    network, inputs = perceptron()
    assert "LayoutConstraint" not in jax.jit(network).lower(inputs).as_text()
    with tracing_for("cpu"):
        assert "LayoutConstraint" in jax.jit(network).lower(inputs).as_text()
        eager = stored_in_order(jnp.asarray(X), 1, 0)
    assert eager.format.layout.major_to_minor == (0, 1)
