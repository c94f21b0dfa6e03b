"""`benchmarks/inner_rows.py`: the loop that it times beside the package's computes the same."""

import runpy
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from dctps_jax.ops.rows import Places, inner_rows

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "inner_rows.py"))


def test_both_loops_compute_the_same():
    rng = np.random.default_rng(0)
    inputs, outputs = (jnp.asarray(rng.normal(size=(3, 140)), jnp.float32) for _ in range(2))
    in_inputs = Places(jnp.array([0, 2, 1, 2], jnp.int32), jnp.array([0, 3, 12, 7], jnp.int32))
    in_outputs = Places(jnp.array([1, 1, 0, 2], jnp.int32), jnp.zeros(4, jnp.int32))
    ones = inner_rows(128, inputs, outputs, in_inputs, in_outputs)
    total = SCRIPT["inner_rows_by_sum"](128, inputs, outputs, in_inputs, in_outputs)
    np.testing.assert_allclose(ones, total, rtol=1e-5)
    expected = [inputs[2, 3:131] @ outputs[1, :128], inputs[1, 12:140] @ outputs[0, :128]]
    np.testing.assert_allclose(total[1:3], expected, rtol=1e-4)
