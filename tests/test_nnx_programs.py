"""Layers in programs as JAX and NNX users write them: the same numbers as a plain layer that holds K."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from dctps_jax import DCTpSConv, DCTpSLinear
from dctps_jax.models import create_model
from dctps_jax.ops.methods import METHODS
from dctps_jax.ops.target import PORTABLE, tracing_for
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
