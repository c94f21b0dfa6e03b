"""Every kind of layer equals the layer of NNX that it stands in for, with K written out."""

import copy
import inspect
import pickle
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from dctps_jax import DCTpSConvTranspose, DCTpSEinsum, DCTpSEmbed, DCTpSLinearGeneral, UserError, convert, to_plain
from dctps_jax.layer_kinds import COUNTERPARTS
from dctps_jax.models import prunable_layers
from dctps_jax.ops.methods import METHODS
from dctps_jax.pruning import apply_masks, get_masks, prune

NORMAL = nnx.initializers.normal(1.0)
HIGHEST = jax.lax.Precision.HIGHEST


def promoted(arrays, *, dtype=None, inexact=True):
    """A `promote_dtype` of a user's own."""
    return nnx.nn.dtypes.promote_dtype(arrays, dtype=dtype or jnp.float32, inexact=inexact)


def dot_general(*arguments, **options):
    return 2 * jax.lax.dot_general(*arguments, **options)


# (layer of NNX, its arguments, shape of the inputs)
CASES = [
    (nnx.LinearGeneral, (4, 5), {}, (2, 3, 4)),
    (nnx.LinearGeneral, (4, (2, 3)), {"use_bias": False}, (3, 4)),
    (nnx.LinearGeneral, ((2, 3), 4), {"axis": (-2, -1)}, (2, 5, 2, 3)),
    (nnx.LinearGeneral, ((2, 3), (4, 2)), {"axis": (1, -1)}, (5, 2, 4, 3)),
    (nnx.LinearGeneral, (3, (4, 2)), {"batch_axis": {0: 5}}, (5, 2, 3)),
    (nnx.LinearGeneral, ((3, 2), 4), {"axis": (-1, 2), "batch_axis": {0: 2, 1: 3}}, (2, 3, 3, 6, 2)),
    (nnx.LinearGeneral, (3, 4), {"batch_axis": {0: 1}}, (1, 2, 3)),
    (nnx.LinearGeneral, (4, (2, 3)), {"dtype": jnp.bfloat16}, (3, 4)),
    (nnx.LinearGeneral, (4, (2, 3)), {"promote_dtype": promoted}, (3, 4)),
    (nnx.LinearGeneral, (4, (2, 3)), {"dot_general": dot_general}, (3, 4)),
    (nnx.LinearGeneral, (4, (2, 3)), {"dot_general_cls": lambda: dot_general}, (3, 4)),
    (
        nnx.LinearGeneral,
        (3, (4, 2)),
        {"batch_axis": {0: 5}, "dtype": jnp.bfloat16, "preferred_element_type": jnp.float32},
        (5, 2, 3),
    ),
    (nnx.Einsum, ("nta, hab -> nthb", (3, 4, 2), (3, 2)), {}, (2, 5, 4)),
    (nnx.Einsum, ("...hb,hbc->...c", (3, 4, 2), (2,)), {"precision": HIGHEST}, (2, 5, 3, 4)),
    (nnx.Einsum, ("...hb,hbc->...c", (3, 4, 2)), {}, (3, 4)),
    (nnx.Einsum, ("bth,hgt->gbt", (4, 2, 5), (2, 1, 5)), {}, (3, 5, 4)),  # t is in both: a matrix for each t
    (nnx.Einsum, ("btha,ca->tc", (3, 4), (3,)), {}, (2, 5, 2, 4)),  # the inputs are summed over b and h
    (nnx.Einsum, ("ab,b->a", (4,)), {"kernel_init": NORMAL}, (3, 4)),
    (nnx.Einsum, ("ab,bc->ac", (4, 2), (2,)), {"promote_dtype": promoted}, (3, 4)),
    (nnx.Einsum, ("ab,bc->ac", (4, 2), (2,)), {"einsum_op": partial(jnp.einsum, optimize="greedy")}, (3, 4)),
    (nnx.ConvTranspose, (4, 6, 3), {}, (2, 5, 4)),
    (nnx.ConvTranspose, (4, 6, (3, 2), (2, 3)), {"padding": "SAME"}, (2, 5, 4, 4)),
    (nnx.ConvTranspose, (4, 6, (3, 2), 2), {"padding": "VALID", "use_bias": False}, (2, 3, 5, 4, 4)),
    (nnx.ConvTranspose, (4, 6, (2, 3), (3, 1)), {"padding": "VALID", "transpose_kernel": True}, (5, 4, 4)),
    (nnx.ConvTranspose, (4, 6, (3, 3), 2), {"padding": ((1, 0), (2, 3))}, (2, 5, 4, 4)),
    (nnx.ConvTranspose, (4, 6, (3, 3), 2), {"padding": (-1, 1)}, (2, 5, 4, 4)),
    (nnx.ConvTranspose, (4, 6, (3, 2), 2), {"padding": "CIRCULAR", "transpose_kernel": True}, (2, 5, 4, 4)),
    (nnx.ConvTranspose, (4, 6, (6, 5), (2, 3)), {"padding": "CIRCULAR"}, (2, 2, 3, 4)),
    (nnx.ConvTranspose, (4, 6, (3, 2), 2), {"kernel_dilation": (1, 2), "padding": "SAME"}, (2, 5, 4, 4)),
    (nnx.ConvTranspose, (4, 6, 3, 2), {"kernel_dilation": 2, "padding": "CIRCULAR"}, (2, 5, 4)),
    (nnx.ConvTranspose, (4, 6, 3, 2), {"dtype": jnp.bfloat16}, (0, 5, 4)),
    (nnx.ConvTranspose, (4, 6, 3), {"dtype": jnp.bfloat16, "preferred_element_type": jnp.float32}, (2, 5, 4)),
    (nnx.Embed, (7, 4), {}, (2, 3)),
    (nnx.Embed, (1, 4), {}, (2, 3)),
    (nnx.Embed, (7, 4), {"dtype": jnp.bfloat16}, ()),
    (nnx.Embed, (7, 4), {"promote_dtype": promoted}, (2, 3)),
]
FORMS = ["masked", "compact"]


def inputs_of(layer_type, shape):
    if layer_type is nnx.Embed:
        return jnp.asarray(np.random.default_rng(0).integers(0, 9, shape))  # some are beyond the last embedding
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def build(layer_type, arguments, options):
    inits = {"embedding_init": NORMAL} if layer_type in (nnx.Embed, DCTpSEmbed) else {"bias_init": NORMAL}
    return layer_type(*arguments, **options, **inits, rngs=nnx.Rngs(3))


def assert_same(found, expected, dtype=None):
    assert found.shape == expected.shape and found.dtype == expected.dtype
    tolerance = 0.05 if jnp.bfloat16 in (expected.dtype, dtype) else 2e-5
    np.testing.assert_allclose(
        np.asarray(found, np.float32), np.asarray(expected, np.float32), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("theirs", list(COUNTERPARTS))
def test_arguments_have_the_names_order_and_defaults_of_flax(theirs):
    expected, found = (inspect.signature(cls.__init__).parameters for cls in (theirs, COUNTERPARTS[theirs]))
    assert [name for name in found if name in expected] == list(expected)
    for name, parameter in expected.items():
        assert found[name].kind == parameter.kind, name
        if not name.endswith("_init"):
            assert found[name].default == parameter.default, name
    calls = [list(inspect.signature(cls.__call__).parameters) for cls in (theirs, COUNTERPARTS[theirs])]
    assert calls[0] == calls[1]


@pytest.mark.parametrize(("theirs", "arguments", "options", "shape"), CASES)
def test_a_new_layer_without_offset_equals_that_of_flax_from_the_same_seed(theirs, arguments, options, shape):
    expected, inputs = build(theirs, arguments, options), inputs_of(theirs, shape)
    found = build(COUNTERPARTS[theirs], arguments, options | {"offset": None})
    assert_same(found(inputs), expected(inputs))


@pytest.mark.parametrize(("offset", "form"), [("dct", "compact"), (None, "masked")])
@pytest.mark.parametrize(("theirs", "arguments", "options", "shape"), CASES)
def test_a_converted_layer_equals_the_plain_one_with_k_written_out(theirs, arguments, options, shape, offset, form):
    model = nnx.Sequential(build(theirs, arguments, options))
    converted = convert(model, density=0.6, offset=offset, form=form, embeddings=True)
    (layer,) = prunable_layers(converted).values()
    assert type(layer) is COUNTERPARTS[theirs] and layer.kernel_shape[-1] <= np.prod(layer.kernel_shape)
    shift = 0.5 if layer.mask is None else 0.5 * layer.mask[...]
    layer.kernel.set_value(layer.kernel[...] + shift)
    plain, inputs = to_plain(converted), inputs_of(theirs, shape)
    assert jax.tree.structure(nnx.state(plain)) == jax.tree.structure(nnx.state(model))
    assert_same(converted(inputs), plain(inputs))
    # The gradients of inputs and trained weights are those of the plain layer.
    argnums = 0 if theirs is nnx.Embed else (0, 1)
    gradients = (
        nnx.grad(lambda net, x: (net(x) ** 2).sum(), argnums=argnums)(net, inputs) for net in (converted, plain)
    )
    found, expected = gradients
    if theirs is not nnx.Embed:
        (found, found_of_inputs), (expected, expected_of_inputs) = found, expected
        assert_same(found_of_inputs, expected_of_inputs, options.get("dtype"))
    name = "embedding" if theirs is nnx.Embed else "kernel"
    whole = layer.own_kernel(expected["layers"][0][name][...])
    mask = get_masks(converted)["layers.0"]
    values = found["layers"][0]["kernel"][...]
    assert_same(values if form == "compact" else values[mask], whole[mask], options.get("dtype"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("layer_type", "arguments", "options", "shape"),
    [
        (DCTpSLinearGeneral, ((4, 2), (3, 2)), {"axis": (-2, -1)}, (5, 4, 2)),
        (DCTpSLinearGeneral, (4, (3, 2)), {"batch_axis": {0: 2}}, (2, 5, 4)),
        (DCTpSConvTranspose, (4, 6, (3, 2), 2), {"padding": "VALID"}, (2, 5, 4, 4)),
    ],
)
def test_every_method_computes_every_kind(layer_type, arguments, options, shape, method):
    layer = build(layer_type, arguments, options)
    support = np.flatnonzero(np.arange(np.prod(layer.kernel_shape)) % 3 == 1)
    layer.set_support(support)
    layer.kernel.set_value(layer.kernel[...] + jnp.linspace(0.1, 1, len(support)))
    layer.method = method
    inputs = inputs_of(layer_type, shape)
    assert_same(layer(inputs), to_plain(layer)(inputs))


def test_an_embedding_attends_and_is_read_as_a_table():
    plain = nnx.Embed(7, 4, rngs=nnx.Rngs(0))
    layer = convert(plain, density=0.5, embeddings=True)
    query = inputs_of(None, (2, 3, 4))
    assert_same(layer.attend(query), to_plain(layer).attend(query))
    assert_same(layer.embedding[...], layer.effective_kernel())
    with pytest.raises(UserError, match="the inputs of an embedding are an array of float32"):
        layer(query)


def test_an_einsum_may_be_called_with_another_string():
    plain = nnx.Einsum("ab,bc->ac", (4, 2), rngs=nnx.Rngs(0))
    layer = convert(plain, density=0.5)
    inputs = inputs_of(None, (3, 4))
    assert_same(layer(inputs, "ab,bc->ca"), to_plain(layer)(inputs, "ab,bc->ca"))


@pytest.mark.parametrize("einsum", ["ab,b->ab", "ab,bc->a", "aa,ab->b", "ab,b...->a...", "...b,bc->c", "ab,bb->a"])
def test_an_einsum_that_is_no_product_with_a_matrix_is_refused(einsum):
    with pytest.raises(UserError, match="einsum_str is "):
        DCTpSEinsum(einsum, (4, 4)[: len(einsum.split(",")[1].split("->")[0].replace("...", "c"))], rngs=nnx.Rngs(0))


def test_inputs_whose_axes_are_swapped_are_refused():
    general = DCTpSLinearGeneral((2, 3), 4, axis=(-2, -1), rngs=nnx.Rngs(0))
    einsum = DCTpSEinsum("nab,abc->nc", (2, 3, 4), rngs=nnx.Rngs(0))
    for layer in (general, einsum):
        with pytest.raises(UserError, match=r"axis 1 of the inputs, of shape \(5, 3, 2\), has size 3; .* it must be 2"):
            layer(inputs_of(None, (5, 3, 2)))


def test_arguments_that_no_layer_takes():
    with pytest.raises(UserError, match=r"in_features is \(2, 3\) and axis is \(-1,\)"):
        DCTpSLinearGeneral((2, 3), 4, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match=r"batch_axis names the axes \[1\]"):
        DCTpSLinearGeneral(2, 4, batch_axis={1: 3}, rngs=nnx.Rngs(0))
    paddings: list[Any] = ["CAUSAL", "same", (1, 2, 3), ((1, 2, 3), 1)]
    for padding in paddings:
        with pytest.raises(UserError, match="padding is "):
            DCTpSConvTranspose(2, 4, (3, 3), padding=padding, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("support", [None, np.array([1, 5])])
def test_partitioned_initialisers_draw_what_others_draw(support):
    cases: list[Any] = [
        (DCTpSLinearGeneral, (4, (2, 3)), ("data", None, "model")),
        (DCTpSEinsum, ("ab,cb->ac", (3, 4), (3,)), ("data", "model")),
    ]
    for kind, arguments, names in cases:
        annotated, plain = (
            kind(*arguments, kernel_init=init, offset=None, support=support, rngs=nnx.Rngs(3))
            for init in (nnx.with_partitioning(NORMAL, names), NORMAL)
        )
        assert_same(annotated.kernel[...], plain.kernel[...])


class Attention(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, 8, 6, num_kv_heads=1, decode=False, normalize_qk=True, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.attention(x).mean(1))


@pytest.mark.parametrize("form", FORMS)
def test_attention_is_pruned_by_scores_as_other_layers_are(form):
    inputs, labels = inputs_of(None, (4, 5, 8)), jnp.asarray([0, 1, 2, 0])
    model = convert(Attention(nnx.Rngs(0)), density=1.0, method="erk")
    shapes = {path: mask.shape for path, mask in get_masks(model).items()}
    assert shapes == {
        "attention.query": (8, 6),
        "attention.key": (8, 3),
        "attention.value": (8, 3),
        "attention.out": (6, 8),
        "head": (8, 3),
    }
    masks = prune(model, "snip", 0.3, key=jax.random.key(0), batch=(inputs, labels))
    apply_masks(model, masks, form)
    assert_same(model(inputs), to_plain(model)(inputs))
    assert sum(mask.sum() for mask in get_masks(model).values()) == round(0.3 * (48 + 24 + 24 + 48 + 24))
    plain = to_plain(model)
    assert type(plain.attention.query) is nnx.LinearGeneral and plain.attention.query.kernel[...].shape == (8, 2, 3)


# Inputs whose first axis is divided among devices: an axis of the batch, or one that the kernel has, too.
ON_A_MESH = [
    (DCTpSLinearGeneral, (4, (2, 3)), {}),
    (DCTpSLinearGeneral, (4, (2, 3)), {"batch_axis": {0: 8}}),
    (DCTpSEinsum, ("nta,hab->nthb", (3, 4, 2), (3, 2)), {}),
    (DCTpSConvTranspose, (4, 6, 3, 2), {}),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "arguments", "options"), ON_A_MESH)
def test_a_mesh_with_explicit_axes(kind, arguments, options, form):
    def outputs_and_gradients(inputs):
        layer = build(kind, arguments, options)
        mask = np.arange(np.prod(layer.kernel_shape)).reshape(layer.kernel_shape) % 3 == 1
        layer.set_mask(mask) if form == "masked" else layer.set_support(np.flatnonzero(mask))
        return layer(inputs), nnx.grad(lambda layer: (layer(inputs) ** 2).sum())(layer)

    inputs = inputs_of(kind, (8, 5, 4))
    expected, expected_gradients = outputs_and_gradients(inputs)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        divided = jax.device_put(inputs, NamedSharding(mesh, PartitionSpec("data")))
        if "batch_axis" in options and _refuses(nnx.LinearGeneral(*arguments, **options, rngs=nnx.Rngs(0)), divided):
            # JAX 0.12 wants the kernel divided as the inputs are, of the layers of nnx, too.
            assert _refuses(build(kind, arguments, options), divided)
            return
        found, gradients = outputs_and_gradients(divided)
        assert jax.typeof(found).sharding.spec[0] == "data"
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), gradients, expected_gradients)


def _refuses(layer, inputs):
    """Return whether JAX refuses to multiply arrays that are divided in different ways."""
    try:
        layer(inputs)
    except Exception as error:  # jax.core.ShardingTypeError is not public
        assert "to have the same sharding" in str(error)
        return True
    return False


class AllKinds(nnx.Module):
    def __init__(self, rngs):
        self.table = nnx.Embed(9, 8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.mix = nnx.Einsum("nta,hab->nthb", (2, 8, 3), (2, 3), rngs=rngs)
        self.up = nnx.ConvTranspose(3, 4, 3, strides=2, rngs=rngs)

    def __call__(self, tokens):
        return self.up(self.mix(self.attention(self.table(tokens))))


@pytest.mark.parametrize("form", FORMS)
def test_in_programs_as_nnx_users_write_them(form):
    tokens = inputs_of(nnx.Embed, (3, 5))
    model = convert(AllKinds(nnx.Rngs(0)), density=0.3, form=form, embeddings=True)
    expected = to_plain(model)(tokens)
    abstract = nnx.eval_shape(lambda: convert(AllKinds(nnx.Rngs(0)), density=0.3, form=form, embeddings=True))
    graph, state = nnx.split(model)
    assert jax.tree.map(jnp.shape, nnx.state(abstract)) == jax.tree.map(jnp.shape, state)
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), nnx.merge(graph, state)):
        assert_same(same(tokens), expected)
    assert_same(nnx.jit(lambda model, tokens: model(tokens))(model, tokens), expected)
    assert_same(nnx.remat(lambda model, tokens: model(tokens))(model, tokens), expected)
    mapped = nnx.vmap(lambda model, tokens: model(tokens[None])[0], in_axes=(None, 0))(model, tokens)
    assert_same(mapped, expected)
    assert "DCTpSLinearGeneral" in nnx.tabulate(model, tokens, console_kwargs={"width": 240})


# A layer of each kind, with the shape of a batch of two.
OF_EACH_KIND = [
    (nnx.LinearGeneral, (4, (2, 3)), {}, (2, 5, 4)),
    (nnx.LinearGeneral, ((2, 3), 4), {"axis": (-2, -1)}, (2, 5, 2, 3)),
    (nnx.Einsum, ("nta, hab -> nthb", (3, 4, 2), (3, 2)), {}, (2, 5, 4)),
    (nnx.ConvTranspose, (4, 6, (3, 2), (2, 3)), {}, (2, 5, 4, 4)),
    (nnx.Embed, (7, 4), {}, (2, 3)),
]


def converted_and_plain(theirs, arguments, options, form):
    model = nnx.Sequential(build(theirs, arguments, options))
    converted = convert(model, density=0.6, form=form, embeddings=True)
    return converted, to_plain(converted)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("theirs", "arguments", "options", "shape"), OF_EACH_KIND)
def test_forward_mode(theirs, arguments, options, shape, form):
    converted, plain = converted_and_plain(theirs, arguments, options, form)
    (layer,) = prunable_layers(converted).values()
    layer.method = "autodiff"  # the one that JAX differentiates forwards
    if theirs is nnx.Embed:
        inputs = inputs_of(theirs, shape) % 7
        graph, table, rest = nnx.split(converted, nnx.Param, ...)

        def looked_up(table):
            return nnx.merge(graph, table, rest)(inputs)

        _, moved = jax.jvp(looked_up, (table,), (table,))
        # The table's direction is the table: what is looked up is linear in it, but for the mask.
        np.testing.assert_allclose(moved, looked_up(table), rtol=1e-5)
        return
    inputs = inputs_of(theirs, shape)
    found, expected = (jax.jvp(net, (inputs,), (jnp.cos(inputs),)) for net in (converted, plain))
    jax.tree.map(assert_same, found, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(("theirs", "arguments", "options", "shape"), OF_EACH_KIND)
def test_parameters_in_half_precision(theirs, arguments, options, shape, dtype, form):
    converted, plain = converted_and_plain(theirs, arguments, options | {"param_dtype": dtype}, form)
    inputs = inputs_of(theirs, shape)
    found, expected = converted(inputs), plain(inputs)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(np.float32(found), np.float32(expected), rtol=0.05, atol=0.05)
    gradients = nnx.state(nnx.grad(lambda net: (net(inputs) ** 2).sum().astype(jnp.float32))(converted))
    kernels = [leaf for leaf in jax.tree.leaves(gradients) if leaf.ndim]
    assert kernels and all(leaf.dtype == dtype and np.isfinite(np.float32(leaf)).all() for leaf in kernels)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("theirs", "arguments", "options", "shape"), OF_EACH_KIND)
def test_an_empty_batch(theirs, arguments, options, shape, form):
    converted, plain = converted_and_plain(theirs, arguments, options, form)
    inputs = inputs_of(theirs, (0, *shape[1:]))
    assert_same(converted(inputs), plain(inputs))
    gradients = nnx.state(nnx.grad(lambda net: net(inputs).sum())(converted))
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients))
