"""Masks as a transformation of gradients: what is pruned stays as it is, and so do its moments."""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dctps_jax import UserError
from dctps_jax.pruning.dynamic_sparse import dynamic_sparse
from dctps_jax.pruning.sparse_optimizer import keep_masked, sparse_optimizer

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


@pytest.mark.parametrize("shapes", [((4, 3), (3,)), ((3,), (4, 3)), ((), (3,)), ((3, 1), (3, 3))])
def test_a_mask_of_another_shape_is_refused(shapes):
    of_mask, of_array = shapes
    params, masks = {"layer": [jnp.ones(of_array)]}, {"layer": [jnp.ones(of_mask, bool)]}
    with pytest.raises(UserError, match=r"the mask of layer/0 has shape"):
        keep_masked(params, masks)
    sparse = sparse_optimizer(optax.sgd(0.1), masks)
    with pytest.raises(UserError, match=r"the mask of layer/0 has shape"):
        sparse.update(params, sparse.init(params), params)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.chain(optax.adam(0.1), optax.contrib.reduce_on_plateau(patience=1)),
        optax.polyak_sgd(),
        optax.sgd(0.1),  # takes no loss, and is not handed it
    ],
)
def test_an_update_takes_the_loss(optimizer):
    params = keep_masked(PARAMS, MASKS)
    sparse = sparse_optimizer(optimizer, MASKS)
    assert isinstance(sparse, optax.GradientTransformationExtraArgs)
    gradients = keep_masked(jax.tree.map(jnp.ones_like, params), MASKS)
    updates, _ = sparse.update(gradients, sparse.init(params), params, value=2.0)
    wanted, _ = optax.with_extra_args_support(optimizer).update(gradients, optimizer.init(params), params, value=2.0)
    chex.assert_trees_all_close(updates, wanted)


def test_nnx_optimizer_hands_the_loss_on():
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    state = nnx.state(model, nnx.Param)
    as_pure = nnx.as_pure if hasattr(nnx, "as_pure") else nnx.pure  # the name that later releases of flax have
    masks = jax.tree.map(lambda x: jnp.ones(x.shape, bool), as_pure(state))
    optimizer = nnx.Optimizer(model, sparse_optimizer(optax.polyak_sgd(), masks), wrt=nnx.Param)
    before = np.asarray(model.kernel[...])
    optimizer.update(model, jax.tree.map(jnp.ones_like, state), value=1.0)
    assert (np.asarray(model.kernel[...]) != before).all()


def of_even_positions(array):
    return np.arange(array.size).reshape(array.shape) % 2 == 0


@pytest.mark.parametrize(
    "masks_of",
    [
        lambda state: {
            "layers": {0: {"kernel": of_even_positions(state["layers"][0]["kernel"]), "bias": None}, 1: None}
        },
        lambda state: jax.tree.map(of_even_positions, nnx.to_pure_dict(state)),
        lambda state: jax.tree.map(of_even_positions, state),
        lambda state: jax.tree.map(lambda x: of_even_positions(x) if x.ndim == 2 else None, state),
    ],
    ids=["dicts", "pure dict", "state", "state with None"],
)
def test_nnx_optimizer_takes_masks_in_dicts_and_states(masks_of):
    first = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
    model = nnx.Sequential(first, nnx.Linear(8, 3, rngs=nnx.Rngs(1)))
    state = nnx.state(model, nnx.Param)
    optimizer = nnx.Optimizer(model, sparse_optimizer(optax.adam(0.1), masks_of(state)), wrt=nnx.Param)
    before = np.asarray(first.kernel[...])
    optimizer.update(model, jax.tree.map(jnp.ones_like, state))
    np.testing.assert_array_equal(np.asarray(first.kernel[...]) != before, of_even_positions(before))


@pytest.mark.parametrize("make", [sparse_optimizer, partial(dynamic_sparse, end_step=9)])
@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"w": jnp.ones((3, 2), bool), "b": None}, r"the mask of w has shape \(3, 2\), and the array \(2, 3\)"),
        ({"w": jnp.ones((2, 3), bool)}, r"the masks have nothing for b, an array of shape \(3,\); give it a mask"),
        ({"w": jnp.full((2, 3), 0.3), "b": None}, "the mask of w has other values than 0 and 1"),
        ({"w": [True, False], "b": None}, "the mask of w/0 is True; it must be an array of booleans"),
        ({"w": lambda params: True, "b": None}, "the mask of w is an object of type function; it must be an array"),
        ({"w": {"deep": np.eye(2, 3) > 0}, "b": None}, r"the masks have nothing for w, an array of shape \(2, 3\)"),
        (
            {"w": np.eye(2, 3) > 0, "b": None, "c": np.ones(1, bool)},
            r"there is no array c for a mask of shape \(1,\); the arrays are: b, w",
        ),
        ({"w": np.eye(2, 3) > 0, "b": None, "c": None}, "a tree of another structure than the arrays"),
        (np.eye(2, 3) > 0, r"there is no array the array for a mask|the masks have nothing|another structure"),
    ],
)
def test_init_says_which_mask_does_not_fit(make, masks, message):
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    with pytest.raises(UserError, match=message) as error:
        make(optax.sgd(0.1), masks).init(params)
    assert "\n" not in str(error.value)


def test_masks_of_zeros_and_ones_are_booleans():
    ones = {"w": np.eye(2, 3), "b": None}
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    np.testing.assert_array_equal(keep_masked(params, ones)["w"], np.eye(2, 3))
    assert dynamic_sparse(optax.sgd(0.1), ones, end_step=9).init(params).masks["w"].dtype == bool


def test_several_batches_a_step():
    masks = {"w": np.array([True, False, True, False]), "b": None}
    several = sparse_optimizer(optax.MultiSteps(optax.sgd(0.1), 2), masks)
    params: Any = keep_masked({"w": jnp.ones(4), "b": jnp.ones(2)}, masks)
    state = several.init(params)
    for _ in range(2):
        updates, state = several.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["w"], [0.9, 0, 0.9, 0], rtol=1e-6)
    np.testing.assert_allclose(params["b"], 0.9, rtol=1e-6)
