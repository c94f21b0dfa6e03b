"""Masked and compact states: the same training in every network family, one form turned into the other and back."""

import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dctps_jax.models import create_model, kernel_shapes, prunable_layers
from dctps_jax.optimizers import OPTIMIZERS, make_optimizer
from dctps_jax.pruning import allocate, apply_masks, get_masks, random_masks, random_supports
from dctps_jax.pruning.dynamic import keep_only
from dctps_jax.training.forms import is_compact, to_compact, to_masked
from dctps_jax.training.state import create_state, supports_by_path
from dctps_jax.training.step import mask_update_step, train_step, tree_of_kernels
from tests.native import jit_unoptimised
from tests.small_networks import FAMILIES

pytestmark = pytest.mark.usefixtures("small_families")

KEY = jax.random.key(3)


def images_and_labels():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(4, 32, 32, 3)), jnp.float32), jnp.asarray([0, 1, 2, 1])


def build(name, form, offset: str | None = "dct", density=0.1, **options):
    options = {"num_classes": 3, "offset": offset, "rngs": nnx.Rngs(0)} | options
    model = create_model(name, **options)
    shapes = {path: layer.kernel_shape for path, layer in prunable_layers(model).items()}
    apply_masks(model, random_masks(KEY, shapes, allocate(shapes, density, "epl")), form)
    return model


def optimizer_named(name, fixup=False):
    return make_optimizer(name, 0.01, momentum=0.9, weight_decay=5e-4, fixup=fixup)


def train(model, optimizer, num_steps, dtype=jnp.float32):
    graphs, state = create_state(model, optimizer)
    state = jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, state)
    step = jit_unoptimised(partial(train_step, graph=graphs.train, optimizer=optimizer))
    losses = []
    for _ in range(num_steps):
        images, labels = images_and_labels()
        state, metrics = step(state, (images.astype(dtype), labels))
        losses.append(float(metrics["loss"]))
    return graphs, state, losses


@pytest.mark.parametrize(("name", "offset"), [*((name, "dct") for name in FAMILIES), ("lenet", None)])
def test_both_forms_train_alike(name, offset):
    # In float64: in float32 BatchNorm lets roundings grow from step to step.
    with jax.enable_x64(True):
        optimizer = optimizer_named("sgd", fixup=name.startswith("fixup"))
        graphs, masked, expected = train(build(name, "masked", offset), optimizer, 3, jnp.float64)
        _, compact, losses = train(build(name, "compact", offset), optimizer, 3, jnp.float64)
        assert not is_compact(masked) and is_compact(compact)
        np.testing.assert_allclose(losses, expected, rtol=1e-9)
        assert abs(losses[-1] - losses[0]) > 1e-3
        as_masked = jit_unoptimised(partial(to_masked, shapes=graphs.shapes))(compact)
        for one, other in zip(jax.tree.leaves(as_masked.params), jax.tree.leaves(masked.params), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8 * np.abs(other).max() + 1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_forms_turn_into_each_other_without_loss(optimizer):
    optimizer = optimizer_named(optimizer)
    graphs, state, _ = train(build("lenet", "masked", offset=None), optimizer, 2)
    compact = to_compact(state, graphs.counts)
    assert is_compact(compact)
    chex.assert_trees_all_equal(to_masked(compact, graphs.shapes), state, strict=True)
    assert to_compact(compact, graphs.counts) is compact
    assert to_masked(state, graphs.shapes) is state
    total = sum(graphs.counts.values())
    for leaf in jax.tree.leaves((compact.params, compact.opt_state)):
        assert leaf.size <= max(graphs.counts.values()) < total
    expected = create_state(build("lenet", "compact", offset=None), optimizer)[1]
    assert jax.tree.map(jnp.shape, compact) == jax.tree.map(jnp.shape, expected)


def test_turning_works_with_dense_layers_and_under_jit():
    optimizer = optimizer_named("adam", fixup=True)
    model = create_model("fixup_small", num_classes=3, offset="dct", rngs=nnx.Rngs(0))
    apply_masks(model, {"layer1.0.conv1": np.arange(9 * 16 * 16).reshape(3, 3, 16, 16) % 7 == 0})
    graphs, state, _ = train(model, optimizer, 1)
    assert list(graphs.counts) == ["layer1.0.conv1"]
    compact = jax.jit(partial(to_compact, counts=graphs.counts))(state)
    assert compact.params["layer1"][0]["conv1"]["kernel"].shape == (graphs.counts["layer1.0.conv1"],)
    assert compact.params["layer1"][0]["conv2"]["kernel"].shape == (3, 3, 16, 16)
    as_masked = jax.jit(partial(to_masked, shapes=graphs.shapes))(compact)
    chex.assert_trees_all_equal(as_masked, state, strict=True)


@pytest.mark.parametrize("method", ["rigl", "set"])
@pytest.mark.parametrize("offset", ["dct", None])
def test_mask_updates_are_the_same_in_both_forms(method, offset):
    optimizer = optimizer_named("adam")
    states = {}
    for form in ("masked", "compact"):
        graphs, state, _ = train(build("lenet", form, offset), optimizer, 2)
        drops = {
            path: count // 3 if count < math.prod(graphs.shapes[path]) else 0 for path, count in graphs.counts.items()
        }
        update = jit_unoptimised(partial(mask_update_step, graphs=graphs))
        state, _, moved = update(state, images_and_labels(), drops, KEY if method == "set" else None)
        assert is_compact(state) == (form == "compact") and int(moved["fcs.0"]) > 0
        states[form] = to_masked(state, graphs.shapes)
    chex.assert_trees_all_equal(states["masked"].supports, states["compact"].supports, strict=True)
    for one, other in zip(*(jax.tree.leaves(states[form].params) for form in states), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_compact_network_never_has_a_dense_kernel():
    before = {id(array) for array in jax.live_arrays()}
    shapes = kernel_shapes("resnet18", num_classes=10)
    supports = random_supports(KEY, shapes, allocate(shapes, 0.001, "epl"))
    model = create_model("resnet18", num_classes=10, offset="dct", rngs=nnx.Rngs(0), supports=supports)
    optimizer = optimizer_named("adam")
    graphs, state = create_state(model, optimizer)
    new = [array.size for array in jax.live_arrays() if id(array) not in before]
    assert max(map(np.prod, shapes.values())) == 9 * 512 * 512 and max(new) <= 1000 + 512
    trained = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert trained < 0.002 * sum(np.prod(shape) for shape in graphs.shapes.values())


@pytest.mark.parametrize("offset", ["dct", None])
def test_a_network_built_compact_is_the_masked_one(offset):
    shapes = {path: layer.kernel_shape for path, layer in prunable_layers(build("lenet", "masked")).items()}
    counts = allocate(shapes, 0.1, "epl")
    options = {"num_classes": 3, "offset": offset}
    masked = create_model("lenet", rngs=nnx.Rngs(0), **options)
    apply_masks(masked, random_masks(KEY, shapes, counts))
    compact = create_model("lenet", rngs=nnx.Rngs(0), supports=random_supports(KEY, shapes, counts), **options)
    for path, layer in prunable_layers(compact).items():
        other = prunable_layers(masked)[path]
        assert layer.mask is None and layer.kernel[...].shape == (counts[path],)
        np.testing.assert_array_equal(layer.sparse_kernel(), other.sparse_kernel())
        np.testing.assert_array_equal(get_masks(compact)[path], get_masks(masked)[path])
    images = images_and_labels()[0]
    np.testing.assert_allclose(compact(images), masked(images), rtol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_dense_network_has_one_form_under_every_optimiser(name):
    dense = create_model("lenet", num_classes=3, rngs=nnx.Rngs(0))
    graphs, state = create_state(dense, optimizer_named(name))
    chex.assert_trees_all_equal(to_compact(state, graphs.counts), state, strict=True)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "muon"])  # it trains dense networks only
def test_the_state_of_every_optimiser_goes_there_and_back(name):
    graphs, state = create_state(build("lenet", "masked"), optimizer_named(name))
    # Numbers in the place of the zeros of moments, as far as the masks reach.
    kept = tree_of_kernels(state, supports_by_path(state.supports))
    state = state._replace(opt_state=keep_only(jax.tree.map(jnp.ones_like, state.opt_state), kept))
    compact = to_compact(state, graphs.counts)
    whole = set(graphs.shapes.values())
    assert not any(leaf.shape in whole for leaf in jax.tree.leaves(compact.opt_state))
    chex.assert_trees_all_equal(to_masked(compact, graphs.shapes), state, strict=True)
