"""Masks as a transformation of gradients: what is pruned stays as it is, and so do its moments."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dctps_jax.pruning.transformation import keep_masked, sparse_optimizer

MASKS = {"kernel": jnp.asarray([[True, False], [False, True]]), "bias": None, "rest": None}
PARAMS = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "rest": {"a": jnp.ones(1), "b": [jnp.ones(3)]}}


def test_none_keeps_an_array_or_a_subtree():
    kept = keep_masked(PARAMS, MASKS)
    np.testing.assert_array_equal(kept["kernel"], np.eye(2))
    assert kept["bias"] is PARAMS["bias"] and kept["rest"] is PARAMS["rest"]


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1, momentum=0.9), optax.adam(0.1), optax.adamw(0.1)])
def test_pruned_weights_and_their_moments_stay_zero(optimizer):
    params = keep_masked(PARAMS, MASKS)
    sparse = sparse_optimizer(optimizer, MASKS)
    state = sparse.init(params)
    gradients = jax.tree.map(jnp.ones_like, params) | {"kernel": jnp.asarray([[1.0, jnp.nan], [jnp.inf, 2.0]])}
    expected, expected_state = params, optimizer.init(params)
    for _ in range(3):
        updates, state = jax.jit(sparse.update)(gradients, state, params)
        params = optax.apply_updates(params, updates)
        clean = gradients | {"kernel": jnp.diag(jnp.asarray([1.0, 2.0]))}
        updates, expected_state = optimizer.update(clean, expected_state, expected)
        expected = optax.apply_updates(expected, updates)
    found, wanted = (jax.tree.leaves(tree) for tree in ((params, state), (expected, expected_state)))
    chex.assert_trees_all_close(found, wanted, rtol=1e-6)
    assert params["kernel"][0, 1] == params["kernel"][1, 0] == 0 and params["kernel"][0, 0] != 1
