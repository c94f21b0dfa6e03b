"""RigL and SET in one's own loop move the weights that the trainer's RigL moves, in trees and in NNX models."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dctps_jax import (
    DCTpSLinear,
    DynamicSparseOptimizer,
    UserError,
    convert,
    dynamic_sparse,
    keep_masked,
    unmasked_copy,
)
from dctps_jax.losses import cross_entropy
from dctps_jax.models import create_model
from dctps_jax.pruning import apply_masks, get_masks, prune
from dctps_jax.pruning.dynamic import MovingSchedule
from dctps_jax.training.state import create_state, supports_by_path
from dctps_jax.training.step import mask_update_step, train_step

NUM_STEPS, MOVES = 14, {"update_every": 4, "end_step": 13, "drop_fraction": 0.5}
SPARSE = ("convs.3", "fcs.0", "fcs.2")  # the other layers have no mask


def lenet(offset):
    model = create_model("lenet", num_classes=10, offset=offset, rngs=nnx.Rngs(0))
    masks = prune(model, "epl", 0.05, key=jax.random.key(1))
    apply_masks(model, {path: masks[path] for path in SPARSE})
    return model


def adam():
    # With its usual eps all weights regrown at a step move by the same amount, and rounding decides which are dropped.
    schedule = optax.cosine_decay_schedule(0.1, 20)
    return optax.chain(optax.scale_by_adam(eps=1.0), optax.scale_by_learning_rate(schedule))


def batch_of(step):
    key = jax.random.key(step)
    return jax.random.normal(key, (8, 32, 32, 3)), jax.random.randint(key, (8,), 0, 10)


def trained_by_the_trainer(offset):
    optimizer = adam()
    graphs, state = create_state(lenet(offset), optimizer)
    sizes = {path: int(mask.size) for path, mask in supports_by_path(state.supports).items()}
    schedule = MovingSchedule(*MOVES.values())
    step = jax.jit(lambda state, batch: train_step(state, batch, graph=graphs.train, optimizer=optimizer)[0])
    move = jax.jit(lambda state, batch, drops: mask_update_step(state, batch, drops, None, graphs=graphs)[0])
    moves = 0
    for number in range(NUM_STEPS):
        if schedule.is_update(number):
            state, moves = move(state, batch_of(number), schedule.drop_counts(number, graphs.counts, sizes)), moves + 1
        else:
            state = step(state, batch_of(number))
    assert moves == 3
    return graphs, state


@pytest.fixture(scope="module", params=[None, "dct"])
def trained(request):
    """(offset, graphs, the trainer's last state)"""
    return request.param, *trained_by_the_trainer(request.param)


def loss_of(model, batch):
    return cross_entropy(model(batch[0]), batch[1]).mean()


def assert_same(params, masks, graphs, state):
    found = dict(jax.tree_util.tree_leaves_with_path(params))
    for path, expected in jax.tree_util.tree_leaves_with_path(state.params):
        np.testing.assert_allclose(found[path], expected, rtol=1e-4, atol=1e-6, err_msg=str(path))
    initial = get_masks(lenet(None))
    for path, expected in supports_by_path(state.supports).items():
        np.testing.assert_array_equal(masks[path], expected, err_msg=path)
        assert not np.array_equal(masks[path], initial[path])


def test_an_nnx_model_ends_as_in_the_trainer(trained):
    offset, graphs, state = trained
    model = lenet(offset)
    optimizer = DynamicSparseOptimizer(model, adam(), **MOVES)

    @nnx.jit
    def step(model, optimizer, batch):
        optimizer.update(model, nnx.grad(loss_of)(model, batch))

    @nnx.jit
    def move(model, optimizer, batch):
        optimizer.move(model, nnx.grad(loss_of)(unmasked_copy(model), batch))

    for number in range(NUM_STEPS):
        (move if optimizer.is_move(number) else step)(model, optimizer, batch_of(number))
    assert int(optimizer.step[...]) == NUM_STEPS
    assert_same(nnx.to_pure_dict(nnx.state(model, nnx.Param)), get_masks(model), graphs, state)


def test_a_tree_ends_as_in_the_trainer(trained):
    offset, graphs, state = trained
    dense_graph, params, others = nnx.split(unmasked_copy(lenet(offset)), nnx.Param, ...)
    params, others = nnx.to_pure_dict(params), nnx.to_pure_dict(others)
    found = get_masks(lenet(offset))
    masks = jax.tree.map(lambda _: None, params)
    for path in SPARSE:
        first, second = path.split(".")
        masks[first][int(second)] = masks[first][int(second)] | {"kernel": found[path]}
    optimizer = dynamic_sparse(adam(), masks, **MOVES)
    params = keep_masked(params, masks)
    opt_state = optimizer.init(params)

    def gradients_of(params, batch):
        return jax.grad(lambda params: loss_of(nnx.merge(dense_graph, params, others), batch))(params)

    @jax.jit
    def step(params, opt_state, batch):
        updates, opt_state = optimizer.update(gradients_of(params, batch), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    @jax.jit
    def move(params, opt_state, batch):
        return optimizer.move(gradients_of(params, batch), opt_state, params)

    for number in range(NUM_STEPS):
        params, opt_state = (move if optimizer.is_move(number) else step)(params, opt_state, batch_of(number))
    assert int(opt_state.step) == NUM_STEPS
    by_path = {path: opt_state.masks[path.split(".")[0]][int(path.split(".")[1])]["kernel"] for path in SPARSE}
    assert_same(params, by_path, graphs, state)


@pytest.mark.parametrize("tx", [optax.adamw(0.1), optax.sgd(0.1, momentum=0.9), optax.contrib.prodigy(0.1)])
@pytest.mark.parametrize("method", ["rigl", "set"])
def test_counts_stay_and_what_is_not_trained_is_zero(method, tx):
    key = jax.random.key(0) if method == "set" else None
    params = {"a": jnp.ones((6, 5)), "deep": {"b": jnp.ones((4, 4)), "bias": jnp.ones(4)}}
    masks = {"a": jnp.arange(30).reshape(6, 5) % 3 == 0, "deep": {"b": jnp.eye(4) > 0, "bias": None}}
    optimizer = dynamic_sparse(tx, masks, method=method, key=key, update_every=2, end_step=9, drop_fraction=1.0)
    params = keep_masked(params, masks)
    state, places = optimizer.init(params), set()
    for number in range(10):
        gradients = jax.tree.map(lambda array, n=number: jax.random.normal(jax.random.key(n), array.shape), params)
        if optimizer.is_move(number):
            params, state = optimizer.move(gradients, state, params)
        else:
            updates, state = optimizer.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
        assert int(state.masks["a"].sum()) == 10 and int(state.masks["deep"]["b"].sum()) == 4
        assert not np.asarray(params["a"])[~np.asarray(state.masks["a"])].any()
        places.add(np.asarray(state.masks["a"]).tobytes())
    assert len(places) == 4 and int(state.step) == 10  # the move at step 8 is of no weight


def test_a_move_at_another_step_moves_nothing():
    params = {"a": jnp.ones((6, 5))}
    masks = {"a": jnp.arange(30).reshape(6, 5) % 3 == 0}
    optimizer = dynamic_sparse(optax.sgd(0.1), masks, update_every=2, end_step=9)
    params = keep_masked(params, masks)
    after, state = optimizer.move({"a": jnp.arange(30.0).reshape(6, 5)}, optimizer.init(params), params)
    np.testing.assert_array_equal(state.masks["a"], masks["a"])
    np.testing.assert_array_equal(after["a"], params["a"])


def test_a_layer_as_the_whole_network_and_the_order_of_lists():
    layer = DCTpSLinear(8, 4, offset=None, rngs=nnx.Rngs(0))
    apply_masks(layer, {"": np.arange(32).reshape(8, 4) % 4 == 0})
    optimizer = DynamicSparseOptimizer(layer, optax.adam(0.1), update_every=1, end_step=9, drop_fraction=1.0)
    gradients = nnx.grad(lambda layer: (layer(jnp.ones((2, 8))) * jnp.array([[0.0, 1, 2, 3]])).sum())(
        unmasked_copy(layer)
    )
    optimizer.move(layer, gradients)
    assert layer.mask[...][:, 3].sum() > 0 and layer.mask[...].sum() == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "snip"}, "method is 'snip'; it must be one of: rigl, set"),
        ({"update_every": 0}, "update_every is 0"),
        ({"end_step": 1.5}, "end_step is 1.5"),
        ({"drop_fraction": 2}, "drop_fraction is 2"),
        ({"method": "set"}, "method is 'set', which draws random positions; give it a key"),
        ({"key": jax.random.key(0)}, "but method 'rigl' draws nothing at random; leave out key"),
    ],
)
def test_wrong_settings_are_one_sentence(options, message):
    model = convert(nnx.Sequential(nnx.Linear(8, 8, rngs=nnx.Rngs(0))), density=0.1, form="masked")
    with pytest.raises(UserError, match=message):
        dynamic_sparse(optax.sgd(0.1), {"a": jnp.ones((2, 2), bool)}, **{"end_step": 9} | options)
    with pytest.raises(UserError, match=message):
        DynamicSparseOptimizer(model, optax.sgd(0.1), **{"end_step": 9} | options)


def test_what_has_no_mask_or_no_dense_gradient_is_refused():
    model = convert(nnx.Sequential(nnx.Linear(8, 8, rngs=nnx.Rngs(0))), density=0.1)
    with pytest.raises(UserError, match=r'no layer with a mask, .* form="masked"'):
        DynamicSparseOptimizer(model, optax.sgd(0.1), end_step=9)
    with pytest.raises(UserError, match="there is no mask"):
        dynamic_sparse(optax.sgd(0.1), {"a": None}, end_step=9)
    optimizer = dynamic_sparse(optax.sgd(0.1), {"a": jnp.ones((2, 2), bool)}, end_step=9)
    params = {"a": jnp.ones((2, 2))}
    with pytest.raises(UserError, match=r"a gradient has shape \(2,\), and its array \(2, 2\)"):
        optimizer.move({"a": jnp.ones(2)}, optimizer.init(params), params)


def test_a_seed_is_a_key():
    masks, params = {"a": jnp.eye(4) > 0}, {"a": jnp.eye(4)}
    moved = []
    for key in (3, jax.random.key(3)):
        optimizer = dynamic_sparse(optax.sgd(0.1), masks, method="set", key=key, update_every=1, end_step=9)
        moved.append(optimizer.move({"a": jnp.ones((4, 4))}, optimizer.init(params), params)[1].masks["a"])
    np.testing.assert_array_equal(*moved)


def masked_layer():
    """A layer with a mask, its masked gradients and those of the dense kernel."""
    layer = DCTpSLinear(8, 4, offset=None, rngs=nnx.Rngs(0))
    apply_masks(layer, {"": np.arange(32).reshape(8, 4) % 3 == 0})

    def loss(layer):
        return (layer(jnp.ones((2, 8))) ** 2).sum()

    return layer, nnx.grad(loss)(layer), nnx.grad(loss)(unmasked_copy(layer))


def test_the_gradients_of_the_masked_layers_move_nothing_and_are_refused():
    layer, masked, dense = masked_layer()
    optimizer = DynamicSparseOptimizer(layer, optax.sgd(0.1), update_every=1, end_step=9, drop_fraction=1.0)
    with pytest.raises(UserError, match=r"say nothing of where weights should grow; give .* unmasked_copy\(model\)"):
        optimizer.move(layer, masked)
    before = get_masks(layer)[""]
    optimizer.move(layer, dense)
    assert (get_masks(layer)[""] != before).any()
    params, masks = {"w": layer.kernel[...], "b": jnp.ones(4)}, {"w": layer.mask[...], "b": None}
    tree = dynamic_sparse(optax.sgd(0.1), masks, update_every=1, end_step=9)
    gradients = {"w": jnp.ones((8, 4)), "b": jnp.ones(4)}
    with pytest.raises(UserError, match="or of the whole arrays"):
        tree.move(keep_masked(gradients, masks), tree.init(params), params)
    for harmless in (gradients, jax.tree.map(jnp.zeros_like, gradients)):  # no gradient at all says nothing wrong
        tree.move(harmless, tree.init(params), params)
    late = dynamic_sparse(optax.sgd(0.1), masks, update_every=5, end_step=9)
    late.move(keep_masked(gradients, masks), late.init(params), params)  # at this step nothing moves


def test_a_compiled_program_warns_of_masked_gradients(caplog):
    layer, _, dense = masked_layer()
    optimizer = DynamicSparseOptimizer(layer, optax.sgd(0.1), update_every=1, end_step=9, drop_fraction=1.0)
    move = nnx.jit(lambda layer, optimizer, gradients: optimizer.move(layer, gradients))
    move(layer, optimizer, dense)
    jax.effects_barrier()
    assert not caplog.records
    move(layer, optimizer, jax.tree.map(lambda g: jnp.where(layer.mask[...], g, 0), dense))
    jax.effects_barrier()
    assert ["say nothing of where weights should grow" in record.getMessage() for record in caplog.records] == [True]


def test_set_takes_any_gradients():
    layer, masked, _ = masked_layer()
    options = {"method": "set", "key": 0, "update_every": 1, "end_step": 9, "drop_fraction": 1.0}
    optimizer = DynamicSparseOptimizer(layer, optax.sgd(0.1), **options)
    optimizer.move(layer, masked)
    assert int(optimizer.step[...]) == 1


@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_layer_under_two_names_moves_as_under_one(is_compiled):
    class Twice(nnx.Module):
        def __init__(self, is_shared):
            self.hidden = DCTpSLinear(6, 6, offset=None, rngs=nnx.Rngs(0))
            self.first = nnx.List([DCTpSLinear(6, 3, offset=None, rngs=nnx.Rngs(1))])
            self.again = self.hidden if is_shared else None

        def __call__(self, x):
            return self.first[0](self.hidden(nnx.relu(self.hidden(x))))

    def move(model, optimizer, inputs):
        optimizer.move(model, nnx.grad(lambda model: (model(inputs) ** 2).sum())(unmasked_copy(model)))

    layers = []
    for is_shared in (True, False):
        model = Twice(is_shared)
        apply_masks(model, prune(model, "epf", 0.5, key=0))
        before = [layer.mask[...] for layer in (model.hidden, model.first[0])]
        optimizer = DynamicSparseOptimizer(model, optax.adam(0.1), update_every=1, end_step=9, drop_fraction=1.0)
        (nnx.jit(move) if is_compiled else move)(model, optimizer, jax.random.normal(jax.random.key(0), (5, 6)))
        layers.append((model.hidden, model.first[0]))
        for layer, mask in zip(layers[-1], before, strict=True):
            assert (layer.mask[...] != mask).any() and layer.mask[...].sum() == mask.sum()
            assert not np.asarray(layer.kernel[...])[~np.asarray(layer.mask[...])].any()
    for one, other in zip(*layers, strict=True):
        np.testing.assert_array_equal(one.mask[...], other.mask[...])


def test_stacks_are_refused():
    stack = nnx.vmap(lambda key: DCTpSLinear(4, 4, rngs=nnx.Rngs(key)))(jax.random.split(jax.random.key(0), 3))
    apply_masks(stack, prune(stack, "epl", 0.5, key=0))
    with pytest.raises(UserError, match=r"nnx.vmap has stacked the network, .*; keep them in an nnx\.List"):
        DynamicSparseOptimizer(stack, optax.sgd(0.1), end_step=9)


def test_a_network_that_was_pruned_since_is_refused():
    layer, _, dense = masked_layer()
    optimizer = DynamicSparseOptimizer(layer, optax.sgd(0.1), update_every=1, end_step=9, drop_fraction=1.0)
    apply_masks(layer, prune(layer, "epl", 0.2, key=0))
    with pytest.raises(UserError, match="a mask keeps 6 weights, and kept 11 when the optimiser was made; make the"):
        optimizer.move(layer, dense)
    params = {"a": jnp.ones((4, 4)), "b": jnp.ones(3)}
    tree = dynamic_sparse(optax.sgd(0.1), {"a": jnp.eye(4) > 0, "b": None}, update_every=1, end_step=9)
    state = tree.init(params)
    with pytest.raises(UserError, match="a mask keeps 1 weights, and kept 4"):
        tree.move(params, state._replace(masks={"a": jnp.arange(16).reshape(4, 4) == 3, "b": None}), params)
    with pytest.raises(UserError, match="the network has 2 masks, and had 1"):
        tree.move(params, state._replace(masks={"a": jnp.eye(4) > 0, "b": jnp.ones(3) > 0}), params)


@pytest.mark.parametrize("is_pure", [True, False])
def test_masks_in_dicts_for_a_state_of_nnx(is_pure):
    model = nnx.List([nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 3, rngs=nnx.Rngs(1))])
    masks = {number: {"kernel": np.arange(8) % 4 == 0, "bias": None} for number in (1, 0)}
    masks[0]["kernel"], masks[1]["kernel"] = np.eye(4) > 0, np.arange(12).reshape(4, 3) % 4 == 0
    params = nnx.state(model, nnx.Param)
    params = nnx.as_pure(params) if is_pure else params
    optimizer = dynamic_sparse(optax.adam(0.1), masks, update_every=1, end_step=9, drop_fraction=1.0)
    params = keep_masked(params, masks)
    gradients = jax.tree.map(lambda array: jnp.arange(1.0, array.size + 1).reshape(array.shape), params)
    after, state = jax.jit(optimizer.move)(gradients, optimizer.init(params), params)
    assert jax.tree.structure(after) == jax.tree.structure(params)
    for number in (0, 1):
        mask = np.asarray(state.masks[number]["kernel"])
        assert mask.sum() == masks[number]["kernel"].sum() and (mask != masks[number]["kernel"]).any()
    updates, _ = optimizer.update(gradients, state, after)
    assert jax.tree.structure(optax.apply_updates(after, updates)) == jax.tree.structure(params)


def by_name(params):
    return nnx.map_state(lambda path, _: "kernels" if path[-1] == "kernel" else "others", params)


def only_kernels(params):
    return nnx.map_state(lambda path, _: path[-1] == "kernel", params)


# How the optimisers of optax keep their state: beside the parameters, in parts of them, factored, and accumulated.
OPTIMISERS = {
    "adam": optax.adam(0.1),
    "adafactor": optax.adafactor(0.1, min_dim_size_to_factor=4),
    "multi_transform": optax.multi_transform({"kernels": optax.adam(0.1), "others": optax.sgd(0.1)}, by_name),
    "masked": optax.masked(optax.adam(0.1), only_kernels),
    "decay": optax.adamw(0.1, weight_decay=0.5, mask=only_kernels),
    "muon": optax.contrib.muon(0.1),
    "MultiSteps": optax.MultiSteps(optax.adam(0.1), 3),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_weights_move_under_any_optimiser(name):
    model = convert(nnx.Linear(12, 20, rngs=nnx.Rngs(0)), density=0.2, form="masked")
    optimizer = DynamicSparseOptimizer(model, OPTIMISERS[name], end_step=10, update_every=2)
    shapes = jax.tree.map(jnp.shape, nnx.as_pure(optimizer.opt_state))
    inputs = jax.random.normal(jax.random.key(0), (6, 12))

    def loss(model):
        return jnp.mean((model(inputs) - 1) ** 2)

    before = np.asarray(model.mask[...])
    for step in range(6):
        if optimizer.is_move(step):
            optimizer.move(model, nnx.grad(loss)(unmasked_copy(model)))
        else:
            optimizer.update(model, nnx.grad(loss)(model))
    assert jax.tree.map(jnp.shape, nnx.as_pure(optimizer.opt_state)) == shapes
    mask = np.asarray(model.mask[...])
    assert mask.sum() == before.sum() and not np.array_equal(mask, before)
    optimizer.move(model, nnx.grad(loss)(unmasked_copy(model)))  # no step to move at, but everything is set to zero
    moments = [
        leaf for leaf in jax.tree.leaves(nnx.as_pure(optimizer.opt_state)) if jnp.shape(leaf) == model.kernel_shape
    ]
    assert (len(moments) > 0) == (name != "adafactor")
    for array in (model.kernel[...], *moments):
        assert not np.asarray(array)[~mask].any()
