"""The state and the pure functions that advance and evaluate it, on a network of a few weights."""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dctps_jax.data.batches import Examples, Normalization, evaluation_batch
from dctps_jax.layers import DCTpSConv, DCTpSLinear
from dctps_jax.losses import cross_entropy
from dctps_jax.optimizers import make_optimizer
from dctps_jax.training.state import create_state, merge
from dctps_jax.training.step import (
    NO_BAD_STEP,
    add_metrics,
    eval_step,
    train_step,
    zero_sums,
)

PLAIN = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
COUNT, CLASSES = 13, 3


class Network(nnx.Module):
    """A convolution, BatchNorm and a linear layer; half of the weights are pruned."""

    def __init__(self, alpha_trainable=True, offset="dct"):
        rngs = nnx.Rngs(0)
        options: dict[str, Any] = {
            "offset": offset,
            "alpha_trainable": alpha_trainable,
            "rngs": rngs,
            "use_bias": False,
        }
        random = np.random.default_rng(0)
        self.conv = DCTpSConv(3, 4, 3, mask=jnp.asarray(random.random((3, 3, 4)) < 0.5), **options)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.fc = DCTpSLinear(4, CLASSES, mask=jnp.asarray(random.random((4, CLASSES)) < 0.5), **options)

    def __call__(self, x):
        return self.fc(nnx.relu(self.norm(self.conv(x.reshape(len(x), -1, 3)))).mean(1))


def adam(rate=0.01):
    return make_optimizer("adam", rate, momentum=0.9, weight_decay=5e-4, fixup=False)


def images_and_labels(count=COUNT):
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (count, 3, 3, 3), np.uint8)
    return Examples(jnp.asarray(images), jnp.asarray(random.integers(0, CLASSES, count), jnp.int32))


def batch(count=COUNT):
    split = images_and_labels(count)
    return jnp.asarray(split.images) / np.float32(255), jnp.asarray(split.labels)


def after(num_steps, *, optimizer=None, images=None, **options):
    optimizer = optimizer or adam()
    graphs, state = create_state(Network(**options), optimizer)
    step = jax.jit(partial(train_step, graph=graphs.train, optimizer=optimizer))
    data = batch() if images is None else (images, batch()[1])
    losses = []
    for _ in range(num_steps):
        state, metrics = step(state, data)
        losses.append(float(metrics["loss"]))
    return graphs, state, losses


def test_state_shares_no_buffer_with_the_model():
    model = Network()
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model)))
    _, state = create_state(model, adam())
    jax.tree.map(lambda array: array.delete(), state)
    chex.assert_trees_all_equal(before, nnx.to_pure_dict(nnx.state(model)))


def test_step_is_pure_and_learns():
    optimizer = adam()
    graphs, state = create_state(Network(), optimizer)
    before = jax.tree.map(np.array, state)
    step = jax.jit(partial(train_step, graph=graphs.train, optimizer=optimizer))
    (first, metrics), (second, _) = step(state, batch()), step(state, batch())
    chex.assert_trees_all_equal(state, before)
    chex.assert_trees_all_equal(first, second)
    chex.assert_trees_all_equal(first.supports, state.supports)
    assert int(first.step) == 1
    for name in ("params", "batch_stats"):
        with pytest.raises(AssertionError):
            chex.assert_trees_all_equal(getattr(first, name), getattr(state, name))
    model = merge(graphs.train, state)
    logits = model(batch()[0])
    labels = batch()[1]
    by_hand = -np.mean(np.asarray(jax.nn.log_softmax(logits))[np.arange(COUNT), labels])
    np.testing.assert_allclose(metrics["loss"], by_hand, rtol=1e-6)
    assert int(metrics["correct"]) == int((np.asarray(logits).argmax(-1) == labels).sum())
    losses = after(60)[2]
    assert losses[-1] < 0.8 * losses[0]


def test_sgd_step_follows_the_gradient():
    rate = 0.1
    optimizer = make_optimizer("sgd", rate, momentum=0.9, weight_decay=0.0, fixup=False)
    graphs, state = create_state(Network(), optimizer)

    def loss(alpha):
        params = {**state.params, "fc": {**state.params["fc"], "alpha": alpha}}
        logits = merge(graphs.train, state._replace(params=params))(batch()[0])
        return float(cross_entropy(logits, batch()[1]).mean())

    alpha, eps = state.params["fc"]["alpha"], 1e-2
    slope = (loss(alpha + eps) - loss(alpha - eps)) / (2 * eps)
    stepped, _ = train_step(state, batch(), graph=graphs.train, optimizer=optimizer)
    np.testing.assert_allclose(stepped.params["fc"]["alpha"], alpha - rate * slope, rtol=1e-4)


@pytest.mark.parametrize("alpha_trainable", [True, False])
def test_frozen_alpha_stays(alpha_trainable):
    _, state, _ = after(3, alpha_trainable=alpha_trainable)
    if alpha_trainable:
        assert state.frozen == {} and abs(float(state.params["conv"]["alpha"]) - 1) > 1e-3
    else:
        assert "alpha" not in state.params["conv"]
        assert [float(alpha) for alpha in jax.tree.leaves(state.frozen)] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("offset", "optimizer", "pixel"),
    [
        ("dct", "adam", None),
        ("dct", "sgd", np.nan),
        (None, "adamw", None),
        (None, "adam", np.inf),
        ("dct", "adamw", np.inf),
    ],
)
def test_pruned_weights_and_their_moments_stay_zero(offset, optimizer, pixel):
    optimizer = make_optimizer(optimizer, 0.01, momentum=0.9, weight_decay=0.1, fixup=False)
    images = batch()[0] if pixel is None else batch()[0].at[0, 0, 0, 0].set(pixel)
    _, state, losses = after(3, offset=offset, optimizer=optimizer, images=images)
    assert np.isfinite(losses).all() == (pixel is None)
    seen = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.opt_state)):
        for layer in ("conv", "fc"):
            if f"'{layer}'" in (name := jax.tree_util.keystr(path)) and "kernel" in name:
                mask = np.asarray(state.supports[layer]["mask"])
                assert not np.asarray(leaf)[~mask].any(), name
                assert np.asarray(leaf)[mask].any() or pixel is not None, name
                seen += 1
    assert seen in (4, 6)  # two layers: the kernel and one or two moments


@pytest.fixture(scope="module")
def trained():
    return after(2)[:2]


@pytest.mark.parametrize("eval_batch_size", [1, 4, COUNT, COUNT + 3])
def test_evaluation_counts_every_image_once(eval_batch_size, trained):
    graphs, state = trained
    before = jax.tree.map(np.array, state)
    data, sums = images_and_labels(), zero_sums()
    among_others = Examples(*(jnp.concatenate([part[::-1], part]) for part in data))
    rows = jnp.arange(COUNT, 2 * COUNT)
    step = jax.jit(partial(eval_step, graph=graphs.eval, normalization=PLAIN))
    for start in range(0, COUNT, eval_batch_size):
        sums = step(state, sums, *evaluation_batch(among_others, rows, jnp.asarray(start), batch_size=eval_batch_size))
    chex.assert_trees_all_equal(before, state)
    logits = merge(graphs.eval, state)(batch()[0])
    assert int(sums.images) == COUNT
    assert int(sums.correct) == int((logits.argmax(-1) == data.labels).sum())
    np.testing.assert_allclose(sums.loss, cross_entropy(logits, jnp.asarray(data.labels)).sum(), rtol=1e-5)


def test_evaluation_is_by_running_statistics(trained):
    graphs, state = trained
    images = batch()[0]
    alone = merge(graphs.eval, state)(images[:1])
    np.testing.assert_allclose(merge(graphs.eval, state)(images)[:1], alone, rtol=1e-5)
    # In training mode the company matters; else this test could not fail.
    assert not np.allclose(
        merge(graphs.train, state)(images)[:1], merge(graphs.train, state)(images[:2])[:1], rtol=1e-3
    )


def test_sums_remember_the_first_bad_step():
    sums = zero_sums()
    assert int(sums.bad_step) == NO_BAD_STEP
    for step, loss in enumerate([1.0, 2.0, np.inf, 3.0, np.nan]):
        metrics = {"loss": jnp.asarray(loss), "correct": jnp.asarray(2)}
        sums = add_metrics(sums, metrics, jnp.asarray(step), 8)
        if step == 1:
            assert float(sums.loss) == 3 and int(sums.bad_step) == NO_BAD_STEP
    assert int(sums.bad_step) == 2 and int(sums.correct) == 10 and int(sums.images) == 40


def test_cross_entropy_of_bfloat16_is_computed_in_float32():
    logits = np.array([[10.0, 0.0, 0.0], [0.0, 0.0, 300.0]])
    labels = jnp.array([0, 1])
    losses = cross_entropy(jnp.asarray(logits, jnp.bfloat16), labels)
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, [np.log1p(2 * np.exp(-10)), 300], rtol=5e-3)


def test_optimizer_sees_every_trainable_parameter_and_no_other():
    _, state = create_state(Network(alpha_trainable=False), optax.sgd(0.1, momentum=0.9))
    names = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(state.params)
    }
    assert names == {"conv/kernel", "norm/scale", "norm/bias", "fc/kernel"}
    assert jax.tree.structure(state.opt_state[0].trace) == jax.tree.structure(state.params)


@pytest.mark.parametrize("labels", [jnp.zeros((4, 1), jnp.int32), jnp.zeros((3,), jnp.int32)])
def test_labels_that_would_broadcast_are_refused(labels):
    with pytest.raises(AssertionError, match=r"rank|shape"):
        cross_entropy(jnp.zeros((4, CLASSES)), labels)
    graphs, state = create_state(Network(), optax.sgd(0.1))
    with pytest.raises(AssertionError, match=r"rank|shape"):
        train_step(state, (jnp.zeros((4, 6, 6, 3)), labels), graph=graphs.train, optimizer=optax.sgd(0.1))


@pytest.mark.parametrize("loss_scale", [1.0, 1024.0])
def test_small_gradients_in_float16_need_a_scaled_loss(loss_scale):
    class Sure(nnx.Module):
        """A linear layer in float16 that is sure of the first class."""

        def __init__(self):
            self.fc = DCTpSLinear(
                1, 2, offset=None, kernel_init=nnx.initializers.zeros, dtype=jnp.float16, rngs=nnx.Rngs(0)
            )
            self.fc.kernel.set_value(jnp.array([[18.0, 0.0]]))

        def __call__(self, x):
            return self.fc(x.reshape(len(x), 1))

    graphs, state = create_state(Sure(), optax.sgd(1.0))
    images = jnp.ones((1, 1, 1, 1)), jnp.zeros(1, jnp.int32)
    stepped, _ = train_step(state, images, graph=graphs.train, optimizer=optax.sgd(1.0), loss_scale=loss_scale)
    expected = np.exp(-18)  # the gradient, 1.5e-8; the smallest float16 is 6e-8
    moved = float(stepped.params["fc"]["bias"][1])
    assert moved == 0 if loss_scale == 1 else moved == pytest.approx(-expected, rel=0.01)
