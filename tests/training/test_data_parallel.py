"""What crosses devices in a step: the trained weights' gradient, α, BatchNorm and the metrics, read off the program."""

import math
import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dctps_jax import DCTpSConv, DCTpSLinear
from dctps_jax.optimizers import make_optimizer
from dctps_jax.pruning import apply_masks, prune
from dctps_jax.training.state import create_state
from dctps_jax.training.step import train_step
from tests.small_runs import placement_on

DEVICES = 8


class Network(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv1 = DCTpSConv(3, 32, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(32, rngs=rngs)
        self.conv2 = DCTpSConv(32, 64, (3, 3), use_bias=False, rngs=rngs)
        self.fc = DCTpSLinear(64, 10, use_bias=False, rngs=rngs)
        self.dctps_layer_order = ("conv1", "conv2", "fc")

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv1(x)))
        return self.fc(nnx.relu(self.conv2(x)).mean((1, 2)))


def compiled_step(form):
    model = Network()
    apply_masks(model, prune(model, "epl", 0.02, key=jax.random.key(0)), form)
    optimizer = make_optimizer("adam", 0.01, momentum=0.9, weight_decay=5e-4, fixup=False)
    placement = placement_on(DEVICES)
    graphs, state = create_state(model, optimizer, placement.axis_name)
    state = placement.put(state)
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(16, 8, 8, 3)).astype(np.float32), rng.integers(0, 10, 16, dtype=np.int32)
    batch = jax.device_put(batch, placement.batch)
    step = partial(train_step, graph=graphs.train, optimizer=optimizer, mesh=placement.replicated.mesh)
    return jax.jit(step, out_shardings=placement.replicated).lower(state, batch).compile(), state, batch, graphs


def reduced_sizes(program):
    """Sizes of the arrays that the program's collectives take."""
    sizes = []
    for line in program.as_text().splitlines():
        found = re.search(
            r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\(", line
        )
        if found:
            assert found.group(2) == "all-reduce", line
            for shape in re.findall(r"[a-z]+\d+\[([\d,]*)\]", found.group(1)):
                sizes.append(math.prod(int(size) for size in shape.split(",") if size))
    return sizes


def number_of_exchanges(program):
    return len(re.findall(r" all-reduce(?:-start)?\(", program.as_text()))


def test_only_what_is_trained_crosses_devices():
    program, state, _, graphs = compiled_step("compact")
    sizes = reduced_sizes(program)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert parameters == sum(graphs.counts.values()) + 3 + 2 * 32  # values, α, BatchNorm's scale and bias
    moments = 2 * 2 * 32  # of BatchNorm: two in the forward pass, their gradients in the backward pass
    assert parameters <= sum(sizes) <= parameters + moments + 2  # and the loss and the number of right answers
    # The exchanges: BatchNorm's moments, their gradients, and all else at once.
    assert number_of_exchanges(program) == 3
    # The masked form reduces whole kernels; else this test could not fail.
    dense = sum(math.prod(shape) for shape in graphs.shapes.values())
    assert sum(reduced_sizes(compiled_step("masked")[0])) > dense > 10 * sum(sizes)


def test_many_devices_compute_what_one_does():
    program, state, batch, graphs = compiled_step("compact")
    after, metrics = program(state, batch)
    alone = jax.tree.map(np.asarray, state)
    optimizer = make_optimizer("adam", 0.01, momentum=0.9, weight_decay=5e-4, fixup=False)
    model = Network()
    apply_masks(model, prune(model, "epl", 0.02, key=jax.random.key(0)), "compact")
    graphs, _ = create_state(model, optimizer)
    expected, expected_metrics = jax.jit(partial(train_step, graph=graphs.train, optimizer=optimizer))(
        alone, jax.tree.map(lambda part: jnp.asarray(np.asarray(part)), batch)
    )
    assert float(metrics["loss"]) == pytest.approx(float(expected_metrics["loss"]), rel=1e-6)
    assert int(metrics["correct"]) == int(expected_metrics["correct"])
    chex.assert_trees_all_close(after.batch_stats, expected.batch_stats, rtol=1e-5, atol=1e-7)
    moments, expected_moments = (jax.tree.leaves(state.opt_state[1].mu) for state in (after, expected))
    for one, other in zip(moments, expected_moments, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * float(jnp.abs(other).max()))
