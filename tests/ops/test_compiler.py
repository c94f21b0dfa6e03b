"""The compiler's options are taken by it, and none are given where it does not know them."""

import jax
import jax.numpy as jnp
import numpy as np

from dctps_jax.ops import compiler
from dctps_jax.ops.target import tracing_for


def test_a_program_compiles_with_them():
    program = jax.jit(jnp.dot, compiler_options=compiler.compiler_options())
    np.testing.assert_array_equal(program(jnp.eye(3), jnp.arange(3.0)), np.arange(3.0))


def test_convolutions_stay_out_of_the_library():
    def convolve(inputs, kernel):
        return jax.lax.conv_general_dilated(inputs, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    arrays = jnp.ones((2, 8, 8, 16)), jnp.ones((3, 3, 16, 16))
    compiled = jax.jit(convolve).lower(*arrays).compile(compiler.compiler_options()).as_text()
    assert compiled is not None and "convolution(" in compiled and "ynn_fusion" not in compiled


def test_none_on_other_platforms_and_where_unknown(monkeypatch):
    assert compiler.compiler_options("gpu") == {}
    with tracing_for("tpu"):
        assert compiler.compiler_options() == {}
    monkeypatch.setattr(compiler, "CPU", {"xla_no_such_option": "1"})
    assert compiler.compiler_options() == {}
