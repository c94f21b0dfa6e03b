"""Scores with a loss of one's own, float targets, and a label for each token."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dctps_jax import DCTpSLinear, UserError
from dctps_jax.losses import cross_entropy
from dctps_jax.prunable import prunable_layers
from dctps_jax.pruning import prune

KEY = jax.random.key(0)


class Network(nnx.Module):
    """Two layers over the last axis: vectors, or vectors for each token."""

    def __init__(self, offset=None, outputs=6, has_auxiliary=False):
        rngs = nnx.Rngs(0)
        settings = {"offset": offset, "kernel_init": nnx.initializers.normal(0.5), "rngs": rngs}
        self.hidden = DCTpSLinear(8, 16, **settings)
        self.head = DCTpSLinear(16, outputs, **settings)
        self.has_auxiliary = has_auxiliary

    def __call__(self, x):
        hidden = jnp.tanh(self.hidden(x))
        return (self.head(hidden), hidden) if self.has_auxiliary else self.head(hidden)


def inputs(*shape):
    return jax.random.normal(jax.random.key(1), (*shape, 8))


def squared_error(outputs, targets):
    return ((outputs - targets) ** 2).sum(-1)


def expected_masks(model, loss, density):
    """What SNIP keeps, by `jax.grad` of `loss(model)` and a sort."""
    gradients = nnx.grad(loss)(model)
    scores = {
        path: np.abs(np.asarray(layer.effective_kernel() * gradients[path]["kernel"][...]))
        for path, layer in prunable_layers(model).items()
    }
    flat = np.sort(np.concatenate([values.ravel() for values in scores.values()]))[::-1]
    return {path: values >= flat[round(density * flat.size) - 1] for path, values in scores.items()}


def assert_same(found, expected):
    for path, mask in expected.items():
        np.testing.assert_array_equal(found[path], mask, err_msg=path)


@pytest.mark.parametrize("offset", [None, "dct"])
def test_float_targets(offset):
    model, x, targets = Network(offset), inputs(10), jax.random.normal(KEY, (10, 6))
    found = prune(model, "snip", 0.3, key=KEY, batch=(x, targets), loss=squared_error)
    assert_same(found, expected_masks(model, lambda model: squared_error(model(x), targets).mean(), 0.3))
    scalar = prune(model, "snip", 0.3, key=KEY, batch=(x, targets), loss=lambda *pair: squared_error(*pair).mean())
    assert_same(scalar, found)


def test_one_target_an_example():
    model, x, targets = Network(outputs=1), inputs(10), jax.random.normal(KEY, (10,))
    found = prune(model, "snip", 0.3, key=KEY, batch=(x, targets), loss=lambda y, t: optax.l2_loss(y[:, 0], t))
    assert_same(found, expected_masks(model, lambda model: ((model(x)[:, 0] - targets) ** 2).mean(), 0.3))


def test_a_label_for_each_token():
    model, x, labels = Network(), inputs(4, 5), jax.random.randint(KEY, (4, 5), 0, 6)
    found = prune(model, "snip", 0.3, key=KEY, batch=(x, labels))
    flat = labels.reshape(-1)

    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(x).reshape(-1, 6), flat).mean()

    assert_same(found, expected_masks(model, loss, 0.3))


def test_probabilities_of_the_classes():
    model, x, labels = Network(), inputs(10), jnp.arange(10) % 6
    found = prune(model, "snip", 0.3, key=KEY, batch=(x, jax.nn.one_hot(labels, 6)))
    assert_same(found, prune(model, "snip", 0.3, key=KEY, batch=(x, labels)))


@pytest.mark.parametrize("method", ["snip", "iter_snip", "force", "grasp_it"])
def test_the_loss_of_the_package_as_a_function_chooses_the_same(method):
    model, batch = Network(), (inputs(10), jnp.arange(10) % 6)
    named, own = (
        prune(model, method, 0.3, key=KEY, batch=batch, loss=loss) for loss in ("cross_entropy", cross_entropy)
    )
    assert_same(own, named)


def test_grasp_takes_the_outputs_as_they_are():
    model, x, targets = Network(), inputs(10), jax.random.normal(KEY, (10, 6))
    found = prune(model, "grasp", 0.3, key=KEY, batch=(x, targets), loss=squared_error)
    kernels = {path: layer.kernel[...] for path, layer in prunable_layers(model).items()}

    def gradients(kernels):
        def loss(kernels):
            return squared_error(jnp.tanh(x @ kernels["hidden"] + 0) @ kernels["head"], targets).mean()

        return jax.grad(loss)(kernels)

    product = jax.jvp(gradients, (kernels,), (gradients(kernels),))[1]
    scores = {path: np.asarray(kernels[path] * product[path]) for path in kernels}
    flat = np.sort(np.concatenate([values.ravel() for values in scores.values()]))[::-1]
    assert_same(found, {path: values >= flat[round(0.3 * flat.size) - 1] for path, values in scores.items()})


def test_a_network_with_more_than_one_output():
    x, labels = inputs(10), jnp.arange(10) % 6
    model = Network(has_auxiliary=True)
    found = prune(
        model, "snip", 0.3, key=KEY, batch=(x, labels), loss=lambda out, labels: cross_entropy(out[0], labels)
    )
    assert_same(found, prune(Network(), "snip", 0.3, key=KEY, batch=(x, labels)))
    with pytest.raises(UserError, match="the network returns a tuple, and the loss 'cross_entropy' takes an array"):
        prune(model, "snip", 0.3, key=KEY, batch=(x, labels))


INTEGERS = jnp.zeros(10, jnp.int32)


@pytest.mark.parametrize(
    ("labels", "loss", "message"),
    [
        (jnp.zeros((10, 5)), squared_error, r"the loss cannot take .* labels of shape \(10, 5\): "),
        (INTEGERS, lambda outputs, labels: labels, "it must return an array of floats"),
        (INTEGERS, lambda outputs, labels: (outputs, labels), "it must return an array of floats"),
        (INTEGERS, lambda outputs, labels: outputs[:3], r"the loss returns float32 of shape \(3, 6\); it must return"),
        (INTEGERS, lambda outputs: outputs, "the loss cannot take"),
        (jnp.zeros(9), squared_error, r"inputs of shape \(10, 8\) and targets of shape \(9,\); both need one item"),
        (jnp.zeros((10, 5)), "cross_entropy", r"shape \(10, 6\); other targets need a loss of your own"),
        (jnp.zeros((10, 6)), "nll_logits", "must be integers from 0 to 5"),
        (jnp.zeros((10, 1), jnp.int32), "cross_entropy", r"labels have shape \(10, 1\), and the network's logits"),
        (INTEGERS, "mse", "loss is 'mse'; it must be one of"),
        (INTEGERS, None, "loss is None"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(labels, loss, message):
    with pytest.raises(UserError, match=message):
        prune(Network(), "snip", 0.3, key=KEY, batch=(inputs(10), labels), loss=loss)
