"""Networks of plain NNX layers become DCT plus Sparse ones, whatever they are nested in."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dctps_jax import (
    DCTpSConv,
    DCTpSLinear,
    UserError,
    apply_delta,
    conversion_report,
    convert,
    export_delta,
    to_plain,
)
from dctps_jax.kernels import Frozen
from dctps_jax.models import prunable_layers
from dctps_jax.offsets import find_offset
from dctps_jax.pruning import get_masks


class Net(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(2, 8, (3, 3), strides=2, padding="VALID", use_bias=False, rngs=rngs)
        self.groups = nnx.Conv(8, 8, (3, 3), feature_group_count=4, kernel_dilation=2, rngs=rngs)
        self.rest = nnx.Dict({"a": nnx.List([nnx.Linear(8, 16, rngs=rngs), nnx.relu])})
        self.tail = nnx.Sequential(nnx.Linear(16, 16, rngs=rngs), nnx.relu)
        self.again = self.tail.layers[0]
        self.head = nnx.Linear(16, 3, rngs=rngs)
        self.head.bias.set_value(jnp.arange(3.0))

    def __call__(self, x):
        x = nnx.relu(self.groups(nnx.relu(self.stem(x))))
        x = x.mean((1, 2))
        for layer in self.rest["a"]:
            x = layer(x)
        return self.head(self.again(self.tail(x)))


PATHS = ["stem", "groups", "rest.a.0", "tail.layers.0", "head"]
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(4, 9, 9, 2)), jnp.float32)


def total(model):
    return sum(int(mask.sum()) for mask in get_masks(model).values()), sum(
        mask.size for mask in get_masks(model).values()
    )


@pytest.fixture
def net():
    return Net(nnx.Rngs(0))


@pytest.mark.parametrize("form", ["compact", "masked"])
@pytest.mark.parametrize("offset", ["dct", None])
def test_every_layer_of_a_copy(net, form, offset):
    before = nnx.to_pure_dict(nnx.state(net))
    model = convert(net, density=0.2, offset=offset, form=form)
    layers = prunable_layers(model)
    assert (
        set(PATHS) <= set(layers) and isinstance(layers["stem"], DCTpSConv) and isinstance(layers["head"], DCTpSLinear)
    )
    assert model.again is model.tail.layers[0] is layers["tail.layers.0"]
    assert model(IMAGES).shape == (4, 3)
    for path, layer in layers.items():
        assert (layer.support is not None) == (form == "compact") and layer.offset == find_offset(offset), path
    np.testing.assert_array_equal(layers["head"].bias[...], np.arange(3))
    # The model that was given is as it was.
    assert type(net.stem) is nnx.Conv
    chex.assert_trees_all_equal(before, nnx.to_pure_dict(nnx.state(net)))


def test_everything_of_a_layer_is_kept_but_the_kernel(net):
    whole = convert(net, density=1.0, offset=None)
    np.testing.assert_allclose(whole(IMAGES), net(IMAGES), rtol=1e-5, atol=1e-6)
    sparse = convert(net, density=0.3, offset=None)
    for path in PATHS[:2]:
        mask = get_masks(sparse)[path]
        kernel = getattr(net, path).kernel[...]
        np.testing.assert_array_equal(prunable_layers(sparse)[path].effective_kernel(), jnp.where(mask, kernel, 0))


def test_what_is_converted_already_is_allocated_again_with_the_rest(net):
    model = convert(convert(net, density=0.5, exclude="head"), density=0.1)
    assert list(prunable_layers(model)) == PATHS and isinstance(model.head, DCTpSLinear)
    kept, size = total(model)
    assert kept == round(0.1 * size)


def test_the_density_is_that_of_all_converted_layers(net):
    kept, size = total(convert(net, density=0.1, method="erk"))
    assert kept == round(0.1 * size)
    model = convert(net, density=0.1, exclude=("head", "rest.*"))
    assert type(model.head) is nnx.Linear and type(model.rest["a"][0]) is nnx.Linear
    kept, size = total(model)
    assert kept == round(0.1 * size)


def test_keys_and_scores(net):
    first, second, again = (convert(net, density=0.2, key=jax.random.key(seed)) for seed in (0, 1, 0))
    assert all((get_masks(first)[path] == get_masks(again)[path]).all() for path in PATHS)
    assert any((get_masks(first)[path] != get_masks(second)[path]).any() for path in PATHS)
    batch = (IMAGES, jnp.asarray([0, 1, 2, 0]))
    scored = convert(net, density=0.2, method="snip", batch=batch)
    kept, size = total(scored)
    assert kept == round(0.2 * size) and prunable_layers(scored)["stem"].support is not None


def test_it_trains(net):
    model = convert(net, density=0.1)
    optimizer = nnx.Optimizer(model, optax.adam(0.01), wrt=nnx.Param)
    labels = jnp.asarray([0, 1, 2, 0])

    @nnx.jit
    def step(model, optimizer):
        loss, gradients = nnx.value_and_grad(
            lambda model: optax.softmax_cross_entropy_with_integer_labels(model(IMAGES), labels).mean()
        )(model)
        optimizer.update(model, gradients)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]


def test_what_cannot_be_converted(net):
    with pytest.raises(UserError, match=r"exclude: no layer matches 'heads'; the layers are: "):
        convert(net, density=0.1, exclude=("heads",))
    with pytest.raises(UserError, match="the model has no layer to convert"):
        convert(nnx.LayerNorm(3, rngs=nnx.Rngs(0)), density=0.1)
    with pytest.raises(UserError, match="the model has no layer to convert"):
        convert(net, density=0.1, exclude="*")
    masked = nnx.Conv(2, 8, (3, 3), mask=jnp.ones((3, 3, 2, 8)), rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match=r"layers\.0 has a mask of its own"):
        convert(nnx.Sequential(masked), density=0.1)
    with pytest.raises(UserError, match="epl has no option 'batch'"):
        convert(Net(nnx.Rngs(0)), density=0.1, batch=None)
    with pytest.raises(UserError, match="density"):
        convert(Net(nnx.Rngs(0)), density=2.0)


@pytest.mark.parametrize("offset", ["dct", None])
def test_a_layer_trains_no_more_parameters_than_it_has(net, offset):
    for density in (0.2, 1.0):
        report = conversion_report(convert(net, density=density, offset=offset))
        assert all(row.trained <= row.parameters for row in report.rows)
    assert report.density == 1.0
    stem = 3 * 3 * 2 * 8 + (offset is not None)  # α is a parameter
    assert f"{stem} of {stem}" in str(report)


@pytest.mark.parametrize("form", ["compact", "masked"])
@pytest.mark.parametrize("offset", ["dct", "hadamard", None])
def test_back_to_plain_layers(net, form, offset):
    model = convert(net, density=0.3, offset=offset, form=form)
    for layer in prunable_layers(model).values():
        layer.kernel.set_value(layer.kernel[...] + 0.1 * (layer.mask[...] if layer.mask is not None else 1))
    plain = to_plain(model)
    assert jax.tree.structure(nnx.state(plain)) == jax.tree.structure(nnx.state(net))
    assert nnx.graphdef(nnx.eval_shape(lambda: to_plain(model))) == nnx.graphdef(nnx.clone(plain))
    np.testing.assert_allclose(plain(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-5)
    assert type(plain.stem) is nnx.Conv and type(plain.head) is nnx.Linear and plain.again is plain.tail.layers[0]
    assert not prunable_layers(plain) and prunable_layers(model)
    again = convert(plain, density=1.0, offset=None)
    np.testing.assert_allclose(again(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-5)


def test_a_layer_alone_becomes_plain():
    layer = DCTpSLinear(4, 3, use_bias=False, rngs=nnx.Rngs(0))
    plain = to_plain(layer)
    assert type(plain) is nnx.Linear and plain.bias is None
    np.testing.assert_array_equal(plain.kernel[...], layer.effective_kernel())


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR", "REFLECT", 1, ((1, 2), (0, 1))])
def test_every_setting_of_a_convolution_becomes_plain(padding):
    layer = DCTpSConv(4, 6, (3, 3), strides=2, padding=padding, feature_group_count=2, rngs=nnx.Rngs(0))
    images = jax.random.normal(jax.random.key(0), (2, 7, 7, 4))
    np.testing.assert_allclose(to_plain(layer)(images), layer(images), rtol=1e-5, atol=1e-5)


class Adapted(nnx.Module):
    def __init__(self, rngs):
        self.table = nnx.Embed(6, 4, rngs=rngs)
        inner = nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), nnx.LoRA(4, 1, 4, rngs=rngs))
        self.blocks = nnx.List([nnx.LoRA(4, 1, 4, base_module=inner, rngs=rngs)])
        self.adapted = nnx.LoRALinear(4, 4, lora_rank=1, rngs=rngs)
        self.scale = nnx.Einsum("ab,b->ab", (4,), kernel_init=nnx.initializers.ones, rngs=rngs)
        self.out = nnx.LinearGeneral(4, (2, 3), rngs=rngs)

    def __call__(self, tokens):
        return self.out(self.scale(self.adapted(self.blocks[0](self.table(tokens)))))


def test_what_is_wrapped_in_lora_is_left_and_named():
    net, tokens = Adapted(nnx.Rngs(0)), jnp.arange(6)
    model = convert(net, density=1.0, offset=None)
    assert list(prunable_layers(model)) == ["out"]
    outcomes = {row.path: row.outcome for row in conversion_report(model).rows}
    assert outcomes == {
        "table": "left: embeddings are converted with embeddings=True",
        "blocks.0.base_module.layers.0": "left: LoRA",
        "blocks.0.base_module.layers.1": "left: LoRA",
        "blocks.0": "left: LoRA",
        "adapted": "left: LoRA",
        "adapted.lora": "left: LoRA",
        "scale": "left: this einsum is no product with a matrix",
        "out": "K = S, 24 weights",
    }
    np.testing.assert_allclose(model(tokens), net(tokens), rtol=1e-5, atol=1e-6)
    assert list(prunable_layers(convert(net, density=1.0, embeddings=True))) == ["table", "out"]
    with pytest.raises(UserError, match=r"exclude: no layer matches 'blocks\*'; the layers are: out"):
        convert(net, density=1.0, exclude="blocks*")


def test_embeddings_that_share_their_table_are_refused():
    table, linear = nnx.Embed(4, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    linear.kernel = table.embedding
    net = nnx.Sequential(table, linear)
    with pytest.raises(UserError, match=r"layers\.[01] and layers\.[01] share a kernel"):
        convert(net, density=0.5, embeddings=True)


@pytest.mark.parametrize("form", ["compact", "masked"])
def test_weights_are_chosen_within_the_masks_that_layers_have(net, form):
    first = convert(net, density=0.5, exclude="head")
    before = get_masks(first)
    after = get_masks(convert(first, density=0.1, form=form))
    assert all(before[path][after[path]].all() for path in before)
    with pytest.raises(UserError, match="the masks that the network has keep"):
        convert(first, density=1.0, form=form)


def test_a_frozen_network_becomes_plain_and_is_frozen_again(tmp_path):
    class Normed(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(4, 3, rngs=rngs)
            self.norm = nnx.LayerNorm(3, scale_metadata={"note": "kept"}, rngs=rngs)

        def __call__(self, x):
            return self.norm(self.linear(x))

    inputs = jax.random.normal(jax.random.key(0), (5, 4))
    plain = to_plain(convert(Normed(nnx.Rngs(0)), density=0.5, offset="frozen"))
    assert not jax.tree.leaves(nnx.state(plain, Frozen))
    assert isinstance(plain.norm.scale, nnx.Param) and plain.norm.scale.get_metadata()["note"] == "kept"
    tuned: Any = convert(plain, density=0.5, offset="frozen")
    tuned.linear.kernel.set_value(tuned.linear.kernel[...] + 1)
    export_delta(tuned, tmp_path / "delta")
    np.testing.assert_allclose(apply_delta(plain, tmp_path / "delta")(inputs), tuned(inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("offset", ["dct", None, "frozen"])
def test_a_layer_in_two_places_is_excluded_by_either_path(net, offset):
    for path in ("again", "tail.layers.0"):
        model = convert(net, density=0.5, exclude=path, offset=offset)
        assert type(model.again) is nnx.Linear and model.again is model.tail.layers[0]


@pytest.mark.parametrize("form", ["compact", "masked"])
@pytest.mark.parametrize("offset", ["dct", None, "frozen"])
def test_a_network_that_was_cast_keeps_its_type(net, offset, form):
    def cast(array):
        return array.astype(jnp.bfloat16) if jnp.issubdtype(array.dtype, jnp.floating) else array

    nnx.update(net, jax.tree.map(cast, nnx.state(net)))
    model = convert(net, density=0.5, offset=offset, form=form)
    assert model(cast(IMAGES)).dtype == net(cast(IMAGES)).dtype == jnp.bfloat16


def test_the_report_counts_every_parameter():
    with pytest.raises(UserError, match="the network has no parameters"):
        conversion_report(nnx.Sequential(nnx.relu))

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layer = DCTpSLinear(4, 3, use_bias=False, alpha_trainable=False, rngs=rngs)
            self.scales = nnx.data({"first": nnx.Param(jnp.ones(2))})

    rows = {row.path: row for row in conversion_report(Net(nnx.Rngs(0))).rows}
    assert (rows["layer"].parameters, rows["layer"].trained) == (13, 12)
    assert rows["scales"].kind == "parameters" and rows["scales"].trained == 2
