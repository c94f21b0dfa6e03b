"""Layers in programs as JAX and NNX users write them: the same numbers as a plain layer that holds K."""

import copy
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dctps_jax import DCTpSConv, DCTpSConvTranspose, DCTpSLinear, UserError, convert, dynamic_sparse, to_plain
from dctps_jax.models import create_model
from dctps_jax.ops.methods import METHODS
from dctps_jax.ops.target import PORTABLE, tracing_for
from dctps_jax.pruning import get_masks, prune
from tests.small_networks import FAMILIES

SUPPORT = np.array([1, 5, 20, 60, 100, 200])
FORMS = {"dense": {}, "masked": {"mask": np.arange(288).reshape(3, 3, 4, 8) % 3 == 0}, "compact": {"support": SUPPORT}}
CASES = [("dense", "auto"), ("masked", "auto"), *(("compact", method) for method in METHODS)]
IMAGES = jax.random.normal(jax.random.key(1), (8, 6, 6, 4))


def conv(form="compact", offset="dct", method="auto", **settings):
    layer = DCTpSConv(4, 8, (3, 3), offset=offset, rngs=nnx.Rngs(0), **FORMS[form], **settings)
    layer.method = method
    layer.kernel.set_value(layer.kernel[...] + 0.5)
    return layer


def plain(layer):
    """An `nnx.Conv` with the kernel K of a layer written out."""
    same = nnx.Conv(4, 8, (3, 3), rngs=nnx.Rngs(0))
    same.kernel.set_value(layer.effective_kernel())
    same.bias.set_value(layer.bias[...])
    return same


def loss(layer, images):
    return (layer(images) ** 2).sum()


def on_mesh(num_devices, images):
    """The images with their batch along an explicit axis of a mesh, which is set."""
    mesh = jax.make_mesh((num_devices,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    return jax.set_mesh(mesh), jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))


@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize("offset", ["dct", None])
@pytest.mark.parametrize(
    ("form", "method"), [("dense", "auto"), ("masked", "auto"), *(("compact", m) for m in METHODS)]
)
def test_a_mesh_with_explicit_axes(form, method, offset, num_devices):
    layer = conv(form, offset, method)
    outputs, gradients = layer(IMAGES), nnx.grad(loss)(layer, IMAGES)
    context, images = on_mesh(num_devices, IMAGES)
    with context:
        layer = conv(form, offset, method)  # on the mesh, too: JAX 0.10.2 wants it so for gradients of any convolution
        found = layer(images)
        assert jax.typeof(found).sharding.spec[0] == "data"
        np.testing.assert_allclose(found, outputs, rtol=1e-4, atol=1e-5)
        sharded = nnx.grad(loss)(layer, images)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-3), sharded, gradients)


@pytest.mark.parametrize("form", FORMS)
def test_a_linear_layer_on_a_mesh_whose_inputs_are_divided_along_any_axis(form):
    layer = DCTpSLinear(4, 8, rngs=nnx.Rngs(0))
    mask = np.arange(32).reshape(4, 8) % 3 == 0
    if form != "dense":
        layer.set_mask(mask) if form == "masked" else layer.set_support(np.flatnonzero(mask))
    inputs = jax.random.normal(jax.random.key(0), (3, 8, 4))
    expected = layer(inputs)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        found = layer(jax.device_put(inputs, NamedSharding(mesh, PartitionSpec(None, "data"))))
        assert jax.typeof(found).sharding.spec[1] == "data"
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_networks_on_a_mesh_with_explicit_axes(name, small_families):
    model = create_model(name, num_classes=3, rngs=nnx.Rngs(0))
    images = jax.random.normal(jax.random.key(0), (8, 32, 32, 3))
    expected = nnx.clone(model)(images)
    context, images = on_mesh(8, images)
    with context:
        np.testing.assert_allclose(model(images), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_forward_mode_in_a_program_for_every_platform(form):
    layer = conv(form)
    depthwise = DCTpSConv(4, 4, (3, 3), feature_group_count=4, rngs=nnx.Rngs(0))
    linear = DCTpSLinear(4, 8, support=np.array([1, 9]), rngs=nnx.Rngs(0))
    for method in ("auto", *METHODS):
        layer.method = linear.method = method
        with tracing_for(PORTABLE):
            for network, same in ((layer, plain(layer)), (depthwise, depthwise), (linear, linear)):
                tangents = jax.jvp(network, (IMAGES,), (IMAGES,))[1]
                np.testing.assert_allclose(tangents, same(IMAGES) - same(0 * IMAGES), rtol=1e-4, atol=1e-4)


def test_forward_mode_in_a_program_for_every_platform_while_a_network_trains():
    model = create_model("resnet18", num_classes=3, offset="dct", width=4, rngs=nnx.Rngs(0))
    images = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
    graph, state = nnx.split(model)

    def logits(images):
        return nnx.merge(graph, nnx.to_pure_dict(state))(images)  # BatchNorm changes variables of this trace

    with tracing_for(PORTABLE):
        _, tangents = jax.jit(lambda x: jax.jvp(logits, (x,), (x,)))(images)
        gradient = jax.jit(jax.grad(lambda x: logits(x).sum()))(images)
    np.testing.assert_allclose(tangents.sum(), (gradient * images).sum(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("offset", ["dct", None])
def test_no_images(method, offset):
    layer, none = conv("compact", offset, method), IMAGES[:0]
    assert layer(none).shape == (0, 6, 6, 8)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(nnx.grad(loss)(layer, none)))
    linear = DCTpSLinear(4, 8, offset=offset, support=np.array([1, 9]), rngs=nnx.Rngs(0))
    linear.method = method
    assert linear(jnp.ones((0, 5, 4))).shape == (0, 5, 8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("offset", ["dct", None])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_parameters_in_half_precision(method, offset, dtype):
    layer = conv("compact", offset, method, param_dtype=dtype)
    wide = plain(layer)
    wide.kernel.set_value(layer.effective_kernel().astype(jnp.float32))
    images = IMAGES.astype(dtype)
    np.testing.assert_allclose(layer(images), wide(images.astype(jnp.float32)), rtol=0.05, atol=0.1)
    gradients = nnx.grad(loss)(layer, images)
    assert gradients.kernel[...].dtype == dtype and np.isfinite(np.asarray(gradients.kernel[...], np.float32)).all()


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(4, 6, (3, 3), rngs=rngs)
        self.hidden = nnx.Linear(6, 6, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        x = jax.nn.tanh(self.conv(x)).mean((-3, -2))
        return self.head(jax.nn.tanh(self.hidden(x)))


def network(form: Any, offset):
    """A converted network whose S is not zero."""
    model = convert(Net(nnx.Rngs(0)), density=0.4, form=form, offset=offset)
    for number, layer in enumerate((model.conv, model.hidden, model.head)):
        noise = 0.3 * jax.random.normal(jax.random.key(number), layer.kernel[...].shape)
        layer.kernel.set_value(jnp.where(1 if layer.mask is None else layer.mask[...], noise, 0))
    return model


def restored(model, folder):
    """The model, saved by Orbax and restored by an abstract one."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "model", nnx.state(model))
    graph, abstract = nnx.split(nnx.eval_shape(lambda: nnx.clone(model)))
    with ocp.StandardCheckpointer() as checkpointer:
        return nnx.merge(graph, checkpointer.restore(folder / "model", abstract))


def scanned(model, images):
    def body(carry, image):
        outputs = model(image[None])[0]
        return carry + outputs, outputs

    total, outputs = nnx.scan(body, in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))(jnp.zeros(3), images)
    return jnp.concatenate([outputs, total[None]])


# Name → a function of a network, images and an empty folder, that returns arrays.
PROGRAMS = {
    "jit": lambda model, images, folder: nnx.jit(lambda model, images: model(images))(model, images),
    "vmap": lambda model, images, folder: nnx.vmap(lambda m, image: m(image), in_axes=(None, 0))(model, images),
    "scan": lambda model, images, folder: scanned(model, images),
    "remat": lambda model, images, folder: nnx.grad(nnx.remat(loss), argnums=1)(model, images),
    "split and merge": lambda model, images, folder: nnx.merge(*nnx.split(model))(images),
    "deepcopy": lambda model, images, folder: copy.deepcopy(model)(images),
    "pickle": lambda model, images, folder: pickle.loads(pickle.dumps(model))(images),
    "Orbax": lambda model, images, folder: restored(model, folder)(images),
    "grad": lambda model, images, folder: nnx.grad(loss, argnums=1)(model, images),
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("offset", ["dct", None])
@pytest.mark.parametrize("form", ["masked", "compact"])
def test_a_program_computes_what_it_computes_with_plain_layers(form, offset, name, tmp_path):
    model, program = network(form, offset), PROGRAMS[name]
    found = program(model, IMAGES, tmp_path / "ours")
    np.testing.assert_allclose(found, program(to_plain(model), IMAGES, tmp_path / "plain"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("offset", ["dct", None])
@pytest.mark.parametrize("form", ["masked", "compact"])
def test_a_program_for_batches_of_any_size(form, offset):
    model = network(form, offset)
    images = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("batch"), *IMAGES.shape[1:]), jnp.float32)
    for method in ("auto", *METHODS):
        model.conv.method = model.hidden.method = method
        graph, state = nnx.split(model)
        program = jax.export.export(jax.jit(lambda images, graph=graph, state=state: nnx.merge(graph, state)(images)))
        for count in (1, 8):
            found = program(images).call(IMAGES[:count])
            np.testing.assert_allclose(found, model(IMAGES[:count]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("transposed", [False, True])
def test_a_program_for_images_of_any_size(form, transposed):
    kind = DCTpSConvTranspose if transposed else DCTpSConv
    layer = kind(4, 8, (3, 3), strides=2, padding="VALID", rngs=nnx.Rngs(0), **FORMS[form])
    images = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("batch, height, width"), 4), jnp.float32)
    program = jax.export.export(jax.jit(layer))(images)
    np.testing.assert_allclose(program.call(IMAGES), layer(IMAGES), rtol=1e-4, atol=1e-5)


def test_a_depthwise_layer_is_differentiated_for_batches_of_any_size():
    layer = DCTpSConv(4, 4, (3, 3), feature_group_count=4, rngs=nnx.Rngs(0))
    images = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("batch"), *IMAGES.shape[1:]), jnp.float32)

    @jax.jit
    def gradient(images):
        return nnx.grad(loss)(nnx.clone(layer), images)["kernel"][...]

    program = jax.export.export(gradient)(images)
    np.testing.assert_allclose(program.call(IMAGES), gradient(IMAGES), rtol=1e-4)


@pytest.mark.parametrize("transform", [lambda function: function, nnx.jit, nnx.remat])
@pytest.mark.parametrize("offset", ["dct", None])
@pytest.mark.parametrize("form", ["masked", "compact"])
def test_gradients_are_those_of_plain_layers_at_the_trained_weights(form, offset, transform):
    model = network(form, offset)
    plain = to_plain(model)
    ours, whole = (nnx.grad(transform(loss))(one, IMAGES) for one in (model, plain))
    for name, mask in get_masks(model).items():
        gradient = whole[name]["kernel"][...]
        expected = gradient[mask] if form == "compact" else jnp.where(mask, gradient, 0)
        np.testing.assert_allclose(ours[name]["kernel"][...], expected, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(ours[name]["bias"][...], whole[name]["bias"][...], rtol=1e-3, atol=1e-4)
        if offset is not None:
            alpha = (gradient * getattr(model, name).offset_kernel()).sum()
            np.testing.assert_allclose(ours[name]["alpha"][...], alpha, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("offset", ["dct", None])
@pytest.mark.parametrize("form", ["masked", "compact"])
def test_shapes_are_known_without_computing(form, offset):
    model = network(form, offset)
    assert nnx.eval_shape(lambda model, images: model(images), model, IMAGES).shape == (8, 3)
    abstract = nnx.eval_shape(lambda: network(form, offset))
    shapes, expected = (jax.tree.map(lambda x: (x.shape, x.dtype), nnx.state(one)) for one in (abstract, model))
    assert jax.tree.leaves(shapes) == jax.tree.leaves(expected)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("offset", ["dct", None])
@pytest.mark.parametrize("form", ["masked", "compact"])
def test_a_network_on_a_mesh(form, offset, axis_type):
    expected = to_plain(network(form, offset))(IMAGES)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        images = jax.device_put(IMAGES, NamedSharding(mesh, PartitionSpec("data")))
        found = nnx.jit(lambda model, images: model(images))(network(form, offset), images)
        assert found.addressable_shards[0].data.shape == (1, 3)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


class WithOneBias(nnx.Module):
    """Two layers with one bias, which a third module has, too."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.a, self.b, self.c = (nnx.Linear(4, 4, rngs=rngs) for _ in range(3))
        self.b.bias = self.a.bias
        self.again = self.a.bias

    def __call__(self, x):
        return self.c(nnx.relu(self.b(nnx.relu(self.a(x))))) + self.again[...][None]


@pytest.mark.parametrize("form", ["masked", "compact"])
@pytest.mark.parametrize("offset", ["dct", None, "frozen"])
def test_a_shared_bias_stays_shared(offset, form):
    model = convert(WithOneBias(), density=0.5, offset=offset, form=form, exclude=("c",))
    assert model.a.bias is model.b.bias is model.again
    assert isinstance(model.a.bias, nnx.Param) == (offset != "frozen")
    assert isinstance(model.c.bias, nnx.Param)
    if offset != "frozen":
        plain = to_plain(model)
        assert plain.a.bias is plain.b.bias is plain.again
        x = jnp.ones((2, 4))
        np.testing.assert_allclose(plain(x), model(x), rtol=1e-5, atol=1e-6)


def test_a_kernel_that_the_network_holds_too_is_named():
    model = WithOneBias()
    model.again = model.a.kernel
    with pytest.raises(UserError, match=r"^a and the network share a kernel"):
        convert(model, density=0.5)


@pytest.mark.parametrize("method", ["epl", "magnitude"])
def test_masks_that_are_traced_cannot_be_pruned(method):
    model = convert(WithOneBias(), density=0.5)
    with pytest.raises(UserError, match="outside of"):
        nnx.jit(lambda model: prune(model, method, 0.1, key=0))(model)


def test_a_move_may_be_asked_for_in_a_traced_step():
    optimizer = dynamic_sparse(optax.sgd(0.1), {"w": np.eye(4, dtype=bool)}, update_every=2, end_step=5)
    assert [bool(jax.jit(optimizer.is_move)(step)) for step in range(6)] == [
        optimizer.is_move(step) for step in range(6)
    ]
    state = optimizer.init({"w": jnp.ones((4, 4))})
    with pytest.raises(UserError, match=r"^state is "):
        optimizer.move({"w": jnp.ones((4, 4))}, {"w": jnp.ones((4, 4))}, state)
