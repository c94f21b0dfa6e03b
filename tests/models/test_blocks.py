"""Loops over equal blocks and recomputed activations: the same numbers as one block after another."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dctps_jax.models import create_model, kernel_shapes, prunable_layers
from dctps_jax.models.blocks import Running
from dctps_jax.pruning import allocate, random_supports
from tests.native import jit_unoptimised


def loss_and_state(name, density, *, size=8, train=True, **options):
    """Return the loss, its gradients and the new batch statistics of a network on two images, in float64."""
    shapes = kernel_shapes(name, num_classes=3, **{key: options[key] for key in ("width",) if key in options})
    counts = allocate(shapes, density, "epl")
    supports = random_supports(jax.random.key(0), shapes, counts) if density < 1 else None
    model = create_model(
        name,
        num_classes=3,
        offset="dct",
        image_size=size,
        rngs=nnx.Rngs(0),
        param_dtype=jnp.float64,
        **options,
        supports=supports,
    )
    rng = np.random.default_rng(0)
    for layer in prunable_layers(model).values():
        layer.kernel.set_value(jnp.asarray(0.05 * rng.normal(size=layer.kernel[...].shape)))
        layer.alpha.set_value(jnp.asarray(rng.uniform(0.5, 1)))
    model.train() if train else model.eval()
    graph, params, stats, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    x = jnp.asarray(rng.normal(size=(2, size, size, 3)))

    def loss(params):
        merged = nnx.merge(graph, params, nnx.to_pure_dict(stats), nnx.to_pure_dict(rest))
        return (merged(x) ** 2).sum(), nnx.to_pure_dict(nnx.state(merged, nnx.BatchStat))

    (value, stats), gradients = jit_unoptimised(jax.value_and_grad(loss, has_aux=True))(nnx.to_pure_dict(params))
    return value, gradients, stats


def assert_same(one, other):
    chex.assert_trees_all_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "density", "options", "running"),
    [
        ("fixup_resnet20", 0.01, {}, {"min_loop": 2}),
        ("fixup_resnet20", 0.01, {}, {"min_loop": 2, "remat": True}),
        ("fixup_resnet20", 1, {}, {"min_loop": 2}),
        ("resnet18", 0.01, {"width": 4}, {"min_loop": 2, "remat": True}),
        ("vgg11", 0.01, {"size": 16}, {"min_loop": 0, "remat": True}),
    ],
)
def test_running_changes_nothing(name, density, options, running):
    with jax.enable_x64(True):
        expected = loss_and_state(name, density, min_loop=0, **options)
        assert_same(loss_and_state(name, density, **running, **options), expected)


def test_a_loop_is_one_and_leaves_statistics_alone_in_evaluation():
    with jax.enable_x64(True):
        expected = loss_and_state("resnet18", 0.01, width=4, train=False, min_loop=0)
        assert_same(loss_and_state("resnet18", 0.01, width=4, train=False, min_loop=2), expected)


def number_of_convolutions(min_loop):
    model = create_model("fixup_resnet56", num_classes=3, rngs=nnx.Rngs(0), min_loop=min_loop)
    return str(jax.make_jaxpr(lambda x: model(x))(jnp.zeros((1, 16, 16, 3)))).count("conv_general_dilated[")


def test_equal_blocks_are_traced_once():
    # Of nine blocks a stage the first of the second and of the third differ from the others.
    assert number_of_convolutions(min_loop=0) == 55
    assert number_of_convolutions(min_loop=8) <= 1 + 2 * (1 + 2 + 2)


def test_lists_of_weights_of_different_length_share_a_loop():
    paths = kernel_shapes("fixup_resnet20", num_classes=3)
    supports = {path: np.arange(number) for number, path in enumerate(paths)}
    model = create_model("fixup_resnet20", num_classes=3, offset="dct", rngs=nnx.Rngs(0), min_loop=2, supports=supports)
    rng = np.random.default_rng(0)
    for layer in prunable_layers(model).values():
        layer.kernel.set_value(jnp.asarray(rng.normal(size=layer.kernel[...].shape), jnp.float32))
    x = jnp.asarray(rng.normal(size=(2, 8, 8, 3)), jnp.float32)
    looped = model(x)
    model.running = Running(min_loop=0)
    np.testing.assert_allclose(looped, model(x), rtol=1e-4, atol=1e-5)
