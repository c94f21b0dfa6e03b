"""Layers that `nnx.vmap` has stacked: the same numbers as the same layers one by one, and a mask for each."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dctps_jax import (
    DCTpSConv,
    DCTpSConvTranspose,
    DCTpSEinsum,
    DCTpSEmbed,
    DCTpSLinear,
    DCTpSLinearGeneral,
    UserError,
    conversion_report,
    convert,
    to_plain,
)
from dctps_jax.prunable import prunable_layers
from dctps_jax.pruning import allocate, apply_masks, get_masks, prune, random_supports
from dctps_jax.pruning.stacks import equal_in_stacks

KEY = jax.random.key(0)
LAYERS, WIDTH = 3, 8


class Block(nnx.Module):
    def __init__(self, rngs, kind="linear"):
        if kind == "linear":
            self.layer = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        else:
            self.layer = nnx.Conv(WIDTH, WIDTH, (3,), feature_group_count=2, rngs=rngs)
        self.scale = nnx.Param(jnp.full((), 0.7))

    def __call__(self, x):
        return x + nnx.tanh(self.scale[...] * self.layer(x))


class Net(nnx.Module):
    """A stack under `nnx.scan` and a head."""

    def __init__(self, kind="linear", rngs=None):
        keys = jax.random.split(jax.random.key(3), LAYERS)
        self.blocks = nnx.vmap(lambda key: Block(nnx.Rngs(key), kind), in_axes=0, out_axes=0)(keys)
        self.head = nnx.Linear(WIDTH, 3, rngs=nnx.Rngs(1))

    def __call__(self, x):
        x = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.blocks)
        return self.head(x.mean(1))


class Unrolled(nnx.Module):
    """The network of a `Net`, block by block."""

    def __init__(self, net):
        graph, state = nnx.split(net.blocks)
        states = [jax.tree.map(operator.itemgetter(layer), state) for layer in range(LAYERS)]
        self.blocks = nnx.List(nnx.merge(graph, state) for state in states)
        self.head = nnx.clone(net.head)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


INPUTS = jax.random.normal(KEY, (4, 6, WIDTH))
LABELS = jnp.array([0, 1, 2, 0])
BATCH: dict[str, Any] = {"batch": (INPUTS, LABELS)}
FORMS: tuple[Any, ...] = ("masked", "compact")
KINDS, OFFSETS = ("linear", "conv"), ("dct", None)


@nnx.jit
def step(model):
    """One step of gradient descent; return the logits before it."""

    def loss(model):
        logits = model(INPUTS)
        return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean(), logits

    gradients, logits = nnx.grad(loss, has_aux=True)(model)
    nnx.update(model, jax.tree.map(lambda p, g: p - 0.5 * g, nnx.state(model, nnx.Param), gradients))
    return logits


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", OFFSETS)
def test_a_stack_trains_like_its_layers_one_by_one(form, kind, offset):
    model = convert(Net(kind), density=0.3, form=form, offset=offset)
    masks = get_masks(model)
    size = LAYERS * np.prod(model.blocks.layer.kernel_shape) + 3 * WIDTH
    assert masks["blocks.layer"].shape == (LAYERS, *model.blocks.layer.kernel_shape)
    assert sum(mask.sum() for mask in masks.values()) == round(0.3 * size)
    counts = masks["blocks.layer"].reshape(LAYERS, -1).sum(1)
    assert len(set(counts)) == 1 and len({mask.tobytes() for mask in masks["blocks.layer"]}) == LAYERS
    unrolled, plain = Unrolled(model), to_plain(model)
    assert type(plain.blocks.layer) is (nnx.Linear if kind == "linear" else nnx.Conv)
    np.testing.assert_allclose(step(model), step(unrolled), rtol=1e-5, atol=1e-5)
    for a, b in zip(jax.tree.leaves(nnx.state(Unrolled(model))), jax.tree.leaves(nnx.state(unrolled)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    changed = np.asarray(model.blocks.layer.sparse_kernel() != 0)
    assert (changed & ~masks["blocks.layer"]).sum() == 0 and changed.any((-1, -2)).all()
    np.testing.assert_allclose(model(INPUTS), to_plain(model)(INPUTS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_converted_stack_without_offset_computes_as_before(form):
    net = Net("conv")
    np.testing.assert_allclose(convert(net, density=1.0, offset=None)(INPUTS), net(INPUTS), rtol=1e-5, atol=1e-6)
    thin = convert(net, density=0.5, offset=None, form=form)
    kept = jnp.where(get_masks(thin)["blocks.layer"], net.blocks.layer.kernel[...], 0)
    np.testing.assert_array_equal(thin.blocks.layer.effective_kernel(), kept)
    np.testing.assert_array_equal(thin.blocks.layer.bias[...], net.blocks.layer.bias[...])


@pytest.mark.parametrize(("offset", "form"), [("dct", "compact"), (None, "masked")])
@pytest.mark.parametrize("method", ["uniform", "epl", "erk", "epf", "snip", "force", "synflow", "magnitude", "random"])
def test_every_method_chooses_equally_many_weights_in_each_layer(method, offset, form):
    model = convert(Net(), density=1.0, offset=offset)
    options: Any = BATCH if method in ("snip", "force", "synflow") else {}
    if method == "synflow":
        options = options | {"num_steps": 3}
    masks = prune(model, method, 0.25, key=KEY, **options)
    assert masks["blocks.layer"].shape == (LAYERS, WIDTH, WIDTH)
    assert sum(mask.sum() for mask in masks.values()) == round(0.25 * (LAYERS * WIDTH**2 + 3 * WIDTH))
    assert len(set(masks["blocks.layer"].sum((1, 2)))) == 1
    expected = jax.tree.map(lambda mask: jnp.asarray(mask), masks)
    apply_masks(model, masks, form)
    assert all((get_masks(model)[path] == expected[path]).all() for path in masks)
    assert "blocks.layer" in str(conversion_report(model)) and f"{masks['blocks.layer'].sum()} weights" in str(
        conversion_report(model)
    )
    again = prune(model, method, 0.1, key=KEY, **options)
    assert all((masks[path] >= again[path]).all() for path in masks)
    assert sum(mask.sum() for mask in again.values()) == round(0.1 * (LAYERS * WIDTH**2 + 3 * WIDTH))


def test_scores_of_a_stack_are_those_of_its_layers():
    model = convert(Net(), density=1.0, offset=None)
    stacked = prune(model, "snip", 0.25, key=KEY, scope="layer", **BATCH)
    one_by_one = prune(Unrolled(model), "snip", 0.25, key=KEY, scope="layer", **BATCH)
    for layer in range(LAYERS):
        np.testing.assert_array_equal(stacked["blocks.layer"][layer], one_by_one[f"blocks.{layer}.layer"])


def test_a_constructor_under_vmap_takes_masks_and_supports():
    def stack(**settings):
        make = nnx.vmap(lambda key: DCTpSLinear(WIDTH, WIDTH, rngs=nnx.Rngs(key), **settings), in_axes=0, out_axes=0)
        return make(jax.random.split(KEY, LAYERS))

    masked, compact = stack(mask=jnp.eye(WIDTH, dtype=bool)), stack(support=np.arange(0, WIDTH**2, WIDTH + 1))
    for layer in (masked, compact):
        assert layer.stack == (LAYERS,) and get_masks(layer)[""].shape == (LAYERS, WIDTH, WIDTH)
        np.testing.assert_array_equal(get_masks(layer)[""][2], np.eye(WIDTH))
    layer = stack()
    masks = prune(layer, "uniform", 0.5, key=KEY)
    assert (masks[""].sum((1, 2)) == WIDTH**2 // 2).all()
    apply_masks(layer, masks, "compact")
    assert layer.kernel.shape == layer.support.shape == (LAYERS, WIDTH**2 // 2)
    layer.set_dense()
    assert layer.kernel.shape == (LAYERS, WIDTH, WIDTH) and layer.mask is None


def test_several_axes_of_layers():
    make = nnx.vmap(nnx.vmap(lambda key: nnx.Linear(4, 3, rngs=nnx.Rngs(key))))
    stack = make(jax.random.split(KEY, (2, 3)))
    for form in FORMS:
        thin = convert(stack, density=0.5, offset="dct", form=form)
        assert thin.stack == (2, 3) and (get_masks(thin)[""].sum((2, 3)) == 6).all()
        outputs = nnx.vmap(nnx.vmap(lambda layer: layer(jnp.ones(4))))(thin)
        np.testing.assert_allclose(outputs, thin.effective_kernel().sum(2) + thin.bias[...], rtol=1e-5, atol=1e-5)


def test_an_ensemble_under_vmap():
    models = nnx.vmap(lambda key: nnx.Linear(4, 3, rngs=nnx.Rngs(key)))(jax.random.split(KEY, 2))
    thin = convert(models, density=0.5)
    each = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(thin, jnp.ones((5, 4)))
    assert each.shape == (2, 5, 3)


def test_a_stack_along_another_axis_is_refused():
    def make(key):
        return nnx.Linear(4, 3, rngs=nnx.Rngs(key))

    other = nnx.vmap(make, in_axes=0, out_axes=1)(jax.random.split(KEY, 2))
    with pytest.raises(UserError, match=r"the layer has kernel of shape \(4, 2, 3\) where one .* \(4, 3\).*axis"):
        convert(other, density=0.5)
    square = nnx.vmap(lambda key: nnx.Linear(2, 3, rngs=nnx.Rngs(key)), in_axes=0, out_axes=1)(jax.random.split(KEY, 2))
    with pytest.raises(UserError, match=r"the layer has bias of shape \(3, 2\)"):
        convert(square, density=0.5)
    axes = nnx.StateAxes({nnx.Param: 0, ...: None})
    frozen = nnx.vmap(
        lambda key: DCTpSLinear(4, 3, mask=jnp.ones((4, 3), bool), rngs=nnx.Rngs(key)), in_axes=0, out_axes=axes
    )(jax.random.split(KEY, 2))
    with pytest.raises(UserError, match=r"the layer has mask of shape \(4, 3\)"):
        get_masks(frozen)


@pytest.mark.parametrize("form", FORMS)
def test_a_stack_is_not_called_as_one_layer(form):
    model = convert(Net(), density=0.5, form=form)
    with pytest.raises(UserError, match=r"the layer holds 3 layers that nnx.vmap has stacked; call them in nnx.scan"):
        model.blocks.layer(INPUTS)
    axes = nnx.StateAxes({nnx.Param: 0, ...: None})
    with pytest.raises(UserError, match=r"the layer's (mask|support) has shape .* give (Mask|Support) the same axis"):
        nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, axes), out_axes=nnx.Carry)(INPUTS, model.blocks.layer)


TOKENS = jnp.zeros((2, WIDTH), int)
# A call of each kind of layer, also where its own product is computed natively.
CALLS: dict[str, tuple[Any, Any]] = {
    "conv": (lambda rngs: DCTpSConv(WIDTH, 4, (3,), rngs=rngs), lambda layer: layer(INPUTS)),
    "dilated conv": (lambda rngs: DCTpSConv(WIDTH, 4, (3,), kernel_dilation=2, rngs=rngs), lambda layer: layer(INPUTS)),
    "linear": (lambda rngs: DCTpSLinear(WIDTH, 4, rngs=rngs), lambda layer: layer(INPUTS)),
    "embed": (lambda rngs: DCTpSEmbed(4, WIDTH, rngs=rngs), lambda layer: layer(TOKENS)),
    "attend": (lambda rngs: DCTpSEmbed(4, WIDTH, rngs=rngs), lambda layer: layer.attend(INPUTS)),
    "transposed": (lambda rngs: DCTpSConvTranspose(WIDTH, 4, (3,), rngs=rngs), lambda layer: layer(INPUTS)),
    "dilated transposed": (
        lambda rngs: DCTpSConvTranspose(WIDTH, 4, (3,), kernel_dilation=2, rngs=rngs),
        lambda layer: layer(INPUTS),
    ),
    "einsum": (lambda rngs: DCTpSEinsum("nti,io->nto", (WIDTH, 4), rngs=rngs), lambda layer: layer(INPUTS)),
    "other einsum": (
        lambda rngs: DCTpSEinsum("nti,io->nto", (WIDTH, 4), rngs=rngs),
        lambda layer: layer(INPUTS, "nti,io->ton"),
    ),
    "general": (lambda rngs: DCTpSLinearGeneral(WIDTH, 4, rngs=rngs), lambda layer: layer(INPUTS)),
    "general of a dtype": (
        lambda rngs: DCTpSLinearGeneral(WIDTH, 4, preferred_element_type=jnp.float32, rngs=rngs),
        lambda layer: layer(INPUTS),
    ),
}


@pytest.mark.parametrize("kind", CALLS)
def test_no_kind_of_layer_is_called_as_a_stack(kind):
    make, call = CALLS[kind]
    call(make(nnx.Rngs(0)))
    stack = nnx.vmap(lambda key: make(nnx.Rngs(key)), in_axes=0, out_axes=0)(jax.random.split(KEY, LAYERS))
    with pytest.raises(UserError, match=f"the layer holds {LAYERS} layers that nnx.vmap has stacked"):
        call(stack)


def test_masks_of_a_stack_are_checked():
    model = convert(Net(), density=1.0)
    with pytest.raises(UserError, match=r"mask of blocks.layer has shape \(8, 8\), its kernel \(3, 8, 8\)"):
        apply_masks(model, {"blocks.layer": np.ones((WIDTH, WIDTH), bool)})
    unequal = np.ones((LAYERS, WIDTH, WIDTH), bool)
    unequal[0, 0, 0] = False
    with pytest.raises(UserError, match=r'keeps 63 to 64 weights in each of its 3 stacked layers.*form="masked"'):
        apply_masks(model, {"head": np.ones((WIDTH, 3), bool), "blocks.layer": unequal}, "compact")
    assert all(layer.support is None for layer in prunable_layers(model).values())
    apply_masks(model, {"blocks.layer": unequal})
    np.testing.assert_array_equal(get_masks(model)["blocks.layer"], unequal)
    with pytest.raises(UserError, match="a list of integer positions for each of 3 layers"):
        model.blocks.layer.set_support(np.arange(3))


SHAPES, STACKS = {"a": (8, 8), "b": (8, 3)}, {"a": (5,)}


@pytest.mark.parametrize("method", ["uniform", "epl", "erk", "epf"])
@pytest.mark.parametrize("density", [0.01, 0.1, 0.37, 0.99, 1.0])
def test_counts_are_equal_in_a_stack_and_exact_in_the_network(method, density):
    counts = allocate(SHAPES, density, method, stacks=STACKS)
    assert counts["a"] % 5 == 0 and sum(counts.values()) == round(density * (5 * 64 + 24))
    one_by_one = allocate({**{f"a{i}": (8, 8) for i in range(5)}, "b": (8, 3)}, density, method)
    assert abs(counts["b"] - one_by_one["b"]) <= 5
    supports = random_supports(KEY, SHAPES, counts, STACKS)
    assert supports["a"].shape == (5, counts["a"] // 5) and supports["b"].shape == (counts["b"],)


def test_a_network_of_stacks_alone_rounds_down():
    assert allocate({"a": (8, 8)}, 0.332, "uniform", stacks=STACKS) == {"a": 105}  # of 106
    assert allocate({"a": (8, 8), "c": (8, 8)}, 0.1, "epl", stacks={"a": (5,), "c": (3,)}) == {"a": 30, "c": 21}
    assert allocate({"a": (8, 8)}, 1.0, "epl", stacks=STACKS) == {"a": 320}
    assert allocate({"a": (8, 8), "b": (1, 2)}, 164 / 322, "uniform", stacks=STACKS) == {"a": 160, "b": 2}  # of 164
    with pytest.raises(UserError, match=r"density 0\.01 keeps 3 weights, fewer than the layers of each stack"):
        allocate({"a": (8, 8)}, 0.01, "uniform", stacks=STACKS)


def test_densities_of_a_stack_hold_for_each_of_its_layers():
    counts = allocate(SHAPES, 102 / 344, "uniform", layer_densities={"a": 0.3}, stacks=STACKS)
    assert counts == {"a": 5 * round(0.3 * 64), "b": 7}
    assert allocate(SHAPES, 0.95, "epl", dense_layers="a", stacks=STACKS) == {"a": 320, "b": 7}


def test_scores_that_a_stack_cannot_keep_go_to_other_layers():
    scores = {"a": np.arange(6.0).reshape(2, 3) + 1, "b": np.array([0.1, 0.2, 0.3])}
    masks = {"a": np.array([[0, 0, 0], [1, 1, 1]], bool), "b": np.zeros(3, bool)}
    all_allowed = {path: np.ones_like(mask) for path, mask in masks.items()}
    equal = equal_in_stacks(scores, masks, all_allowed, {"a": (2,)})
    np.testing.assert_array_equal(equal["a"], [[0, 0, 1], [0, 0, 1]])
    np.testing.assert_array_equal(equal["b"], [0, 0, 1])


def test_the_masks_of_a_stack_leave_room_for_equal_numbers():
    model = convert(Net(), density=1.0, offset=None)
    mask = np.ones((LAYERS, WIDTH, WIDTH), bool)
    mask[1] = np.eye(WIDTH)
    apply_masks(model, {"blocks.layer": mask})
    masks = prune(model, "magnitude", 40 / 216, key=KEY)
    assert (masks["blocks.layer"] & ~mask).sum() == 0 and len(set(masks["blocks.layer"].sum((1, 2)))) == 1
    assert sum(mask.sum() for mask in masks.values()) == 40
    for method in ("magnitude", "uniform"):
        with pytest.raises(UserError, match="the masks that the network has keep"):
            prune(model, method, 60 / 216, key=KEY)


def test_a_stack_is_converted_abstractly_and_restored():
    def build():
        return convert(Net(), density=0.25)

    abstract, real = nnx.eval_shape(build), build()
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(nnx.state(abstract))] == [
        (x.shape, x.dtype) for x in jax.tree.leaves(nnx.state(real))
    ]
    assert list(prunable_layers(abstract)) == ["blocks.layer", "head"] and isinstance(abstract.head, DCTpSLinear)
    assert not isinstance(abstract.head, DCTpSConv)


# Kind → a constructor, and inputs of one layer.
OTHER_KINDS: dict[str, tuple[Any, Any]] = {
    "LinearGeneral": (lambda rngs: nnx.LinearGeneral(8, (2, 4), rngs=rngs), INPUTS),
    "batch axes": (lambda rngs: nnx.LinearGeneral(8, 4, batch_axis={0: 4}, rngs=rngs), INPUTS[:, 0]),
    "Einsum": (lambda rngs: nnx.Einsum("nta,hab->nthb", (2, 8, 4), (2, 4), rngs=rngs), INPUTS),
    "ConvTranspose": (lambda rngs: nnx.ConvTranspose(8, 8, (3,), strides=2, rngs=rngs), INPUTS),
    "transposed kernel": (lambda rngs: nnx.ConvTranspose(8, 4, (3,), transpose_kernel=True, rngs=rngs), INPUTS),
    "Embed": (lambda rngs: nnx.Embed(9, 8, rngs=rngs), jnp.arange(4)),
    "attention": (lambda rngs: nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs), INPUTS),
}


def outputs_of_each(stack, inputs):
    return nnx.vmap(lambda layer, inputs: layer(inputs), in_axes=(0, None))(stack, inputs)


@pytest.mark.parametrize(("form", "offset"), [("masked", "dct"), ("compact", "dct"), ("compact", None)])
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_stacks_of_every_kind_of_layer(kind, form, offset):
    make, inputs = OTHER_KINDS[kind]
    stack = nnx.vmap(lambda key: make(nnx.Rngs(params=key)))(jax.random.split(KEY, LAYERS))
    thin = convert(stack, density=0.5, form=form, offset=offset, embeddings=True)
    outputs = outputs_of_each(thin, inputs)
    np.testing.assert_allclose(outputs, outputs_of_each(to_plain(thin), inputs), rtol=1e-5, atol=1e-5)
    graph, state = nnx.split(thin)
    for number in range(LAYERS):
        layer = nnx.merge(graph, jax.tree.map(operator.itemgetter(number), state))
        np.testing.assert_allclose(layer(inputs), outputs[number], rtol=1e-5, atol=1e-5)
    for mask in get_masks(thin).values():
        counts = mask.reshape(LAYERS, -1).sum(1)
        assert set(counts) == {mask[0].size // 2} and (mask[0] != mask[1]).any()
    again = prune(thin, "uniform", 0.25, key=KEY)
    assert all((again[path] <= mask).all() for path, mask in get_masks(thin).items())
    gradients = nnx.grad(lambda thin: (outputs_of_each(thin, inputs) ** 2).sum())(thin)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    whole = convert(stack, density=1.0, offset=None, embeddings=True)
    np.testing.assert_allclose(outputs_of_each(whole, inputs), outputs_of_each(stack, inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["uniform", "magnitude"])
def test_a_pattern_on_a_stack_is_refused(method):
    with pytest.raises(UserError, match=r"nnx.vmap has stacked blocks.layer; a pattern is for layers that are not"):
        convert(Net(), density=0.5, method=method, pattern="2:4")
    stack = nnx.vmap(lambda key: nnx.Linear(8, 8, rngs=nnx.Rngs(key)))(jax.random.split(KEY, 2))
    with pytest.raises(UserError, match=r"nnx.vmap has stacked the network; a pattern"):
        convert(stack, density=0.5, method=method, pattern="2:4", offset=None)
    with pytest.raises(UserError, match=r"nnx.vmap has stacked the network, and offset is 'frozen'"):
        convert(stack, density=0.5, offset="frozen")
