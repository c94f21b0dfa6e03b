"""What a user notes beside a kernel or a bias, e.g. its division among devices, is still there in our layers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from dctps_jax import DCTpSConv, DCTpSLinear, DynamicSparseOptimizer, convert, to_plain, unmasked_copy
from dctps_jax.pruning import apply_masks, get_masks, prune

COLUMNS = (None, "model")
INPUTS = jax.random.normal(jax.random.key(0), (4, 16))
ALL = np.ones((16, 8), bool)
FORMS: tuple[Any, ...] = ("masked", "compact")
EXTRA: dict[str, Any] = {"dense": {}, "masked": {"mask": ALL}, "compact": {"support": np.flatnonzero(ALL)}}


def divided(make, columns=COLUMNS, **note):
    kernel_init = nnx.with_partitioning(nnx.initializers.lecun_normal(), columns, **note)
    bias_init = nnx.with_partitioning(nnx.initializers.normal(), columns[-1:])
    return make(kernel_init=kernel_init, bias_init=bias_init)


def plain(**inits):
    return nnx.Linear(16, 8, rngs=nnx.Rngs(0), **inits)


@pytest.fixture(params=[AxisType.Auto, AxisType.Explicit])
def mesh(request):
    mesh = jax.make_mesh((8,), ("model",), axis_types=(request.param,))
    with jax.set_mesh(mesh):
        yield mesh


@pytest.mark.parametrize("form", EXTRA)
@pytest.mark.parametrize("offset", ["dct", None])
def test_a_layer_that_is_divided_among_devices(form, offset, mesh):
    def make(**inits):
        return DCTpSLinear(16, 8, offset=offset, rngs=nnx.Rngs(0), **EXTRA[form], **inits)

    layer = divided(make, note="mine")
    inits: Any = {
        "kernel_init": nnx.initializers.lecun_normal(),
        "bias_init": nnx.initializers.normal(),
    }
    whole = make(**inits)
    expected = (None,) if form == "compact" else COLUMNS
    assert layer.kernel.get_metadata("out_sharding") == expected and layer.kernel.get_metadata("note") == "mine"
    specs: Any = nnx.get_partition_spec(nnx.state(layer))
    assert specs["kernel"].get_value() == PartitionSpec(*expected)
    assert specs["bias"].get_value() == PartitionSpec("model")
    if form == "masked":
        assert specs["mask"].get_value() == PartitionSpec(*COLUMNS) and len(layer.mask[...].devices()) == 8
    np.testing.assert_allclose(layer(INPUTS), whole(INPUTS), rtol=1e-5, atol=1e-5)
    sums = [nnx.grad(lambda layer: (layer(INPUTS) ** 2).sum())(one).kernel[...] for one in (layer, whole)]
    np.testing.assert_allclose(*sums, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("offset", ["dct", None])
def test_a_converted_network_is_divided_as_it_was(form, offset, mesh):
    model = convert(divided(plain, note="mine"), density=0.5, offset=offset, form=form)
    assert model.kernel.get_metadata("out_sharding") == (COLUMNS if form == "masked" else (None,))
    assert model.kernel.get_metadata("note") == "mine" and model.bias.get_metadata("out_sharding") == ("model",)
    assert len(model.bias[...].addressable_shards[0].data) == 1
    if form == "masked":
        assert {array.addressable_shards[0].data.shape for array in (model.kernel[...], model.mask[...])} == {(16, 1)}
    outputs = model(INPUTS)
    np.testing.assert_allclose(nnx.jit(lambda model, x: model(x))(model, INPUTS), outputs, rtol=1e-5, atol=1e-5)
    back = to_plain(model)
    assert back.kernel.get_metadata("note") == "mine" and back.bias.get_metadata("out_sharding") == ("model",)
    np.testing.assert_allclose(back(INPUTS), outputs, rtol=1e-5, atol=1e-5)
    for other in FORMS:
        apply_masks(model, prune(model, "uniform", 0.5, key=jax.random.key(1)), other)
        np.testing.assert_allclose(model(INPUTS), outputs, rtol=1e-5, atol=1e-5)


def test_weights_move_within_a_kernel_that_is_divided():
    with jax.set_mesh(jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))):
        model, whole = convert(divided(plain), density=0.5, form="masked"), convert(plain(), density=0.5, form="masked")
        kernel = jax.random.normal(jax.random.key(2), (16, 8))
        moved = []
        for one in (model, whole):
            one.set_mask(get_masks(whole)[""])
            one.kernel.set_value(jnp.where(one.mask[...], jax.device_put(kernel, one.kernel[...].sharding), 0))
            optimizer = DynamicSparseOptimizer(one, optax.adam(0.1), end_step=9, update_every=1)
            gradients = nnx.grad(lambda model: (model(INPUTS) ** 2).sum())(unmasked_copy(one))
            optimizer.move(one, gradients)
            moved.append(one.mask[...])
        np.testing.assert_array_equal(*moved)
        assert (np.asarray(moved[0]) != get_masks(convert(plain(), density=0.5, form="masked"))[""]).any()
        for array in (model.kernel[...], model.mask[...]):
            assert array.addressable_shards[0].data.shape == (16, 1)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_forms_change_where_the_mesh_is_not_set(axis_type):
    with jax.set_mesh(jax.make_mesh((8,), ("model",), axis_types=(axis_type,))):
        model = convert(divided(plain), density=1.0, offset=None)
    apply_masks(model, {"": ALL}, "masked")
    apply_masks(model, get_masks(model), "compact")
    assert model.kernel.get_metadata("out_sharding") == (None,)


@pytest.mark.parametrize("form", FORMS)
def test_the_names_of_a_stack_and_of_a_convolution(form):
    def make(key):
        return divided(
            lambda **inits: nnx.Conv(4, 8, (3,), rngs=nnx.Rngs(key), **inits), (None, None, "model"), note="mine"
        )

    names = {nnx.PARTITION_NAME: "layers"}
    with nnx.use_eager_sharding(False):
        stack = nnx.vmap(make, in_axes=0, out_axes=0, transform_metadata=names)(jax.random.split(jax.random.key(0), 3))
        thin = convert(stack, density=0.5, form=form)
    assert isinstance(thin, DCTpSConv)
    own = (None, None, "model") if form == "masked" else (None,)
    assert thin.kernel.get_metadata("out_sharding") == ("layers", *own)
    assert thin.bias.get_metadata("out_sharding") == ("layers", "model")
    x = jnp.ones((2, 6, 4))
    each = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None), transform_metadata=names)(thin, x)
    np.testing.assert_allclose(
        each, nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(to_plain(thin), x), rtol=1e-4
    )
