"""`benchmarks/rows.py`: all ways that it times compute the same."""

import runpy
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from dctps_jax.ops.rows import Places

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "rows.py"))
RNG = np.random.default_rng(0)
INPUTS, OUTPUTS = (RNG.normal(size=(3, 140)).astype(np.float32) for _ in range(2))
VALUES = RNG.normal(size=4).astype(np.float32)
IN_INPUTS = Places(jnp.array([0, 2, 1, 2], jnp.int32), jnp.array([0, 3, 12, 7], jnp.int32))
IN_OUTPUTS = Places(jnp.array([1, 1, 0, 2], jnp.int32), jnp.zeros(4, jnp.int32))


def test_both_ways_to_add_compute_the_same():
    expected = np.zeros((3, 140), np.float32)
    for value, row, start, to in zip(VALUES, *IN_INPUTS, IN_OUTPUTS.row, strict=True):
        expected[to, :128] += value * INPUTS[row, start : start + 128]
    for name, add in SCRIPT["ADDING"].items():
        found = add((3, 140), 128, jnp.asarray(VALUES), jnp.asarray(INPUTS), IN_INPUTS, IN_OUTPUTS)
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=name)


def test_all_ways_to_an_inner_product_compute_the_same():
    zipped = zip(*IN_INPUTS, IN_OUTPUTS.row, strict=True)
    expected = [INPUTS[row, start : start + 128] @ OUTPUTS[to, :128] for row, start, to in zipped]
    for name, inner in SCRIPT["INNER"].items():
        found = inner(128, jnp.asarray(INPUTS), jnp.asarray(OUTPUTS), IN_INPUTS, IN_OUTPUTS)
        np.testing.assert_allclose(found, expected, rtol=1e-4, err_msg=name)
