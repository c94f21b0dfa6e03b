"""Networks as people write them: where layers are found, and what cannot be pruned is refused, not pruned wrongly."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dctps_jax import (
    DCTpSConv,
    DCTpSEinsum,
    DCTpSEmbed,
    DCTpSLinear,
    DCTpSLinearGeneral,
    UserError,
    convert,
    unmasked_copy,
)
from dctps_jax.prunable import prunable_layers
from dctps_jax.pruning import allocate, apply_masks, get_masks, prune, random_masks, random_supports

KEY = jax.random.key(0)


def linear(rngs):
    return nnx.Linear(4, 4, rngs=rngs)


class Other(nnx.Pytree):
    def __init__(self, rngs):
        self.inside = linear(rngs)


class InContainers(nnx.Module):
    def __init__(self, rngs):
        self.z = linear(rngs)
        self.listed: Any = nnx.data([linear(rngs), {"key": linear(rngs)}, (linear(rngs),)])
        self.pair = nnx.data((linear(rngs), linear(rngs)))
        self.named = nnx.data({"b": linear(rngs), "a": linear(rngs)})
        self.list = nnx.List([linear(rngs)])
        self.dict = nnx.Dict(b=linear(rngs))
        self.other = Other(rngs)

    def layers(self):
        yield from (self.z, self.listed[0], self.listed[1]["key"], self.listed[2][0], *self.pair)
        yield from (self.named["b"], self.named["a"], self.list[0], self.dict["b"], self.other.inside)

    def __call__(self, x):
        for layer in self.layers():
            x = layer(x)
        return x


IN_ORDER = [
    "z", "listed.0", "listed.1.key", "listed.2.0", "pair.0", "pair.1", "named.b", "named.a", "list.0", "dict.b",
    "other.inside",
]  # fmt: skip


@pytest.mark.parametrize("form", ["masked", "compact"])
def test_layers_are_found_in_every_container_in_order_of_definition(form):
    model, x = InContainers(nnx.Rngs(0)), jnp.ones((2, 4))
    whole = convert(model, density=1.0, offset=None, form=form)
    np.testing.assert_allclose(whole(x), model(x), rtol=1e-6)
    thin = convert(model, density=0.5, offset=None, form=form)
    assert all(type(layer) is DCTpSLinear for layer in thin.layers())
    assert list(get_masks(thin)) == IN_ORDER
    again = nnx.merge(*nnx.split(thin))
    assert list(get_masks(again)) == IN_ORDER
    assert sum(mask.sum() for mask in get_masks(again).values()) == 11 * 16 // 2
    assert all(type(layer) is nnx.Linear for layer in model.layers())  # the model itself is as it was


def test_a_copy_that_trains_all_weights_leaves_other_attributes_as_they_are():
    class Network(nnx.Module):
        def __init__(self):
            self.layer = DCTpSLinear(4, 4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))

        @property
        def dtype(self):
            return self.layer.dtype

    copy = unmasked_copy(Network())
    assert copy.layer.dtype is copy.dtype is None


def test_a_pattern_excludes_a_layer_in_a_container():
    thin = convert(InContainers(nnx.Rngs(0)), density=0.5, exclude=("listed.1.*", "pair.0"))
    assert type(thin.listed[1]["key"]) is nnx.Linear and type(thin.pair[0]) is nnx.Linear
    assert type(thin.pair[1]) is DCTpSLinear


def test_a_module_that_holds_itself_is_entered_once():
    class Loop(nnx.Module):
        def __init__(self, rngs):
            self.layer, self.me = linear(rngs), self

    model = convert(Loop(nnx.Rngs(0)), density=0.5)
    assert list(prunable_layers(model)) == ["layer"] and model.me is model


@pytest.mark.parametrize("layer", [nnx.Linear(4, 6, rngs=nnx.Rngs(0)), nnx.Conv(4, 6, (3, 3), rngs=nnx.Rngs(0))])
def test_a_layer_may_be_the_whole_network(layer):
    thin = convert(layer, density=0.5)
    assert isinstance(thin, DCTpSLinear | DCTpSConv) and list(get_masks(thin)) == [""]
    assert thin.support is not None and thin.support[...].size == layer.kernel[...].size // 2
    assert sum(mask.sum() for mask in prune(thin, "uniform", 0.25, key=KEY).values()) == layer.kernel[...].size // 4


@pytest.mark.parametrize("order", [("b", "a"), "ab", (1, 0), None])
def test_an_attribute_called_layer_order_is_the_users(order):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layer_order, self.a, self.b = order, linear(rngs), linear(rngs)

    thin = convert(Net(nnx.Rngs(0)), density=0.5)
    assert thin.layer_order == order and list(get_masks(thin)) == ["a", "b"]


class Two(nnx.Module):
    def __init__(self, a, b):
        self.a, self.b = a, b


def tied(make):
    model = Two(make(), make())
    model.b.kernel = model.a.kernel
    return model


TIED = r"a and b share a kernel|b and a share a kernel"


@pytest.mark.parametrize(
    "make",
    [
        lambda: linear(nnx.Rngs(0)),
        lambda: nnx.Conv(4, 4, 3, rngs=nnx.Rngs(0)),
        lambda: nnx.ConvTranspose(4, 4, (3,), rngs=nnx.Rngs(0)),
        lambda: nnx.LinearGeneral(4, (2, 2), rngs=nnx.Rngs(0)),
        lambda: nnx.Einsum("na,ab->nb", (4, 4), rngs=nnx.Rngs(0)),
    ],
)
def test_tied_kernels_are_not_converted(make):
    with pytest.raises(UserError, match=TIED):
        convert(tied(make), density=0.5)


def test_a_kernel_that_an_embedding_shares_is_not_converted():
    model = Two(nnx.Embed(4, 4, rngs=nnx.Rngs(0)), linear(nnx.Rngs(1)))
    model.b.kernel = model.a.embedding
    with pytest.raises(UserError, match=TIED):
        convert(model, density=0.5)
    model.c = linear(nnx.Rngs(2))
    assert model.b.kernel is model.a.embedding
    thin = convert(model, density=0.5, exclude="b")  # left alone, they stay tied
    assert thin.b.kernel is thin.a.embedding and isinstance(thin.c, DCTpSLinear)


@pytest.mark.parametrize("form", ["masked", "compact"])
@pytest.mark.parametrize("offset", ["dct", None])
def test_tied_kernels_are_not_pruned(form, offset):
    model = tied(lambda: DCTpSLinear(4, 8, offset=offset, rngs=nnx.Rngs(0)))
    for call in (
        lambda: prune(model, "uniform", 0.5, key=KEY),
        lambda: apply_masks(model, {"a": np.ones((4, 8), bool)}, form),
        lambda: get_masks(model),
    ):
        with pytest.raises(UserError, match=TIED):
            call()
    assert model.a.mask is None and model.a.support is None


def test_one_module_in_two_places_is_one_layer():
    shared = linear(nnx.Rngs(0))
    thin = convert(Two(shared, shared), density=0.5)
    assert thin.a is thin.b and list(get_masks(thin)) == ["a"]


@pytest.mark.parametrize("wrapper", [nnx.SpectralNorm, nnx.WeightNorm])
@pytest.mark.parametrize(
    "inside",
    [
        linear,
        lambda rngs: nnx.Conv(4, 4, (3, 3), rngs=rngs),
        lambda rngs: nnx.ConvTranspose(4, 4, (3, 3), rngs=rngs),
        lambda rngs: nnx.LinearGeneral(4, (2, 2), rngs=rngs),
    ],
)
def test_normalised_kernels_are_whole_kernels(wrapper, inside):
    def model():
        return Two(wrapper(inside(nnx.Rngs(0)), rngs=nnx.Rngs(0)), linear(nnx.Rngs(1)))

    with pytest.raises(UserError, match=f"a.layer_instance is in an nnx.{wrapper.__name__}"):
        convert(model(), density=0.5)
    masked = convert(model(), density=0.5, form="masked", offset=None)
    with pytest.raises(UserError, match=f"a.layer_instance is in an nnx.{wrapper.__name__}"):
        apply_masks(masked, get_masks(masked), "compact")
    # With a fixed part the wrapper would normalise S alone.
    for fixed in ("dct", "frozen"):
        for density in (0.5, 1.0):
            with pytest.raises(UserError, match="a layer with an offset store no whole kernel"):
                convert(model(), density=density, form="masked", offset=fixed)
    assert convert(model(), density=0.5, form="masked", offset="frozen", exclude="a.*").b.base is not None
    assert masked.a.layer_instance.mask is not None and masked.b.support is None
    # A layer that has no offset keeps none, in a network whose other layers get one.
    mixed = Two(masked.a, linear(nnx.Rngs(1)))
    later = convert(mixed, density=0.3, form="masked")
    assert later.a.layer_instance.offset is None and later.b.offset is not None
    with pytest.raises(UserError, match=r"a\.layer_instance is in an nnx"):
        convert(mixed, density=0.3)
    apply_masks(masked, {"b": get_masks(masked)["b"]}, "compact")
    assert convert(model(), density=0.5, exclude="a.*").b.support is not None


def test_a_layer_with_an_offset_that_is_normalised_takes_no_mask():
    model = nnx.WeightNorm(DCTpSLinear(8, 8, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="a layer with an offset store no whole kernel"):
        apply_masks(model, prune(model, "epl", 0.5, key=0))


def test_a_compact_kernel_has_at_most_2_31_weights():
    last: Any = {"support": np.array([46341**2 - 1]), "rngs": nnx.Rngs(0)}
    for build in (
        lambda: DCTpSLinear(46341, 46341, **last),
        lambda: DCTpSConv(46341, 46341, (1,), **last),
        lambda: DCTpSEmbed(46341, 46341, **last),
        lambda: DCTpSEinsum("na,ab->nb", (46341, 46341), **last),
        lambda: DCTpSLinearGeneral((46341,), (46341,), **last),
    ):
        with pytest.raises(UserError, match=r"2,147,488,281 weights.*int32"):
            build()
    positions = random_supports(KEY, {"a": (70_000, 70_000)}, {"a": 50})["a"]  # without a layer they may be larger
    assert (np.diff(positions) > 0).all() and positions[0] >= 0 and 2**31 < positions[-1] < 70_000**2


@pytest.mark.parametrize("offset", ["dct", None])
@pytest.mark.parametrize("form", ["masked", "compact"])
def test_a_network_is_converted_abstractly(form, offset):
    def build():
        return convert(Two(linear(nnx.Rngs(0)), linear(nnx.Rngs(1))), density=0.25, form=form, offset=offset)

    abstract, real = nnx.eval_shape(build), build()
    chex.assert_trees_all_equal_shapes_and_dtypes(*(nnx.to_pure_dict(nnx.state(model)) for model in (abstract, real)))
    assert list(prunable_layers(abstract)) == ["a", "b"]
    compiled = nnx.jit(build)()
    for path, mask in get_masks(compiled).items():
        np.testing.assert_array_equal(mask, get_masks(real)[path])


def test_a_key_that_is_traced_cannot_choose_weights():
    with pytest.raises(UserError, match="the key is traced"):
        nnx.eval_shape(lambda: convert(linear(nnx.Rngs(0)), density=0.25, key=jax.random.key(1)))


@pytest.fixture
def classes_as_before():
    """nnx.tabulate (flax 0.12.8) leaves copies of inherited methods in the classes that it has seen."""
    before = [(layer_type, set(vars(layer_type))) for layer_type in (DCTpSConv, DCTpSLinear)]
    yield
    for layer_type, names in before:
        for name in set(vars(layer_type)) - names:
            delattr(layer_type, name)


@pytest.mark.parametrize("form", ["masked", "compact"])
@pytest.mark.parametrize("offset", ["dct", None])
@pytest.mark.usefixtures("classes_as_before")
def test_tabulate(form, offset):
    layers = Two(nnx.Conv(1, 2, (3, 3), rngs=nnx.Rngs(0)), linear(nnx.Rngs(0)))
    thin = convert(layers, density=0.5, form=form, offset=offset)
    assert "_apply" not in nnx.tabulate(thin.a, jnp.ones((1, 5, 5, 1)))
    assert f"Total Parameters: {sum(x.size for x in jax.tree.leaves(nnx.state(thin.b)))}" in nnx.tabulate(
        thin.b, jnp.ones((3, 4))
    )


@pytest.mark.parametrize("train", [True, False])
def test_synflow_scores_a_network_with_dropout(train):
    model = nnx.Sequential(linear(nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1)), linear(nnx.Rngs(2)))
    plain = nnx.Sequential(linear(nnx.Rngs(0)), nnx.relu, linear(nnx.Rngs(2)))
    for network in (model, plain):
        network.train() if train else network.eval()
    batch = (jnp.ones((1, 4)), jnp.zeros((1,), jnp.int32))
    options: Any = {"density": 0.5, "method": "synflow", "batch": batch, "offset": None}
    thin, other = convert(model, **options), convert(plain, **options)
    for path, mask in get_masks(thin).items():
        np.testing.assert_array_equal(mask, get_masks(other)[path])


def masked_network(form, density=0.5):
    model = nnx.Sequential(nnx.Linear(8, 6, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(6, 3, rngs=nnx.Rngs(1)))
    return convert(model, density=density, offset=None, form=form, key=jax.random.key(5))


@pytest.mark.parametrize("form", ["masked", "compact"])
@pytest.mark.parametrize("options", [{}, {"num_steps": 3}])
@pytest.mark.parametrize("method", ["uniform", "epl", "erk", "snip", "force", "synflow", "magnitude", "random"])
def test_pruning_again_takes_no_weight_back(method, options, form):
    model = masked_network(form)
    before = get_masks(model)
    batch = jax.random.normal(KEY, (4, 8)), jnp.arange(4) % 3
    settings: Any = options | {"batch": batch} if method in ("snip", "force", "synflow", "magnitude", "random") else {}
    after = prune(model, method, 0.2, key=KEY, **settings)
    assert sum(mask.sum() for mask in after.values()) == round(0.2 * 66)
    assert all((before[path] >= after[path]).all() for path in before)
    apply_masks(model, after, form)
    assert all((get_masks(model)[path] == after[path]).all() for path in after)


@pytest.mark.parametrize("method", ["uniform", "magnitude", "snip"])
def test_more_weights_than_the_masks_keep_are_refused(method):
    model = masked_network("compact", density=0.25)
    settings: Any = {} if method == "uniform" else {"batch": (jnp.ones((2, 8)), jnp.zeros(2, jnp.int32))}
    with pytest.raises(UserError, match="the masks that the network has keep"):
        prune(model, method, 0.5, key=KEY, **settings)


@pytest.mark.parametrize("method", ["uniform", "erk"])
def test_a_network_without_masks_is_pruned_as_ever(method):
    model = masked_network("masked", density=1.0)
    again = prune(model, method, 0.3, key=KEY)
    shapes = {path: mask.shape for path, mask in again.items()}
    expected = random_masks(KEY, shapes, allocate(shapes, 0.3, method))
    assert all((again[path] == expected[path]).all() for path in expected)
