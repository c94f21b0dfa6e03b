"""All methods compute a compact layer as the same function, with the same gradients: layers and whole networks."""

import math
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from dctps_jax import DCTpSConv, compiler_options, dct
from dctps_jax.losses import cross_entropy
from dctps_jax.models import create_model, kernel_shapes, prunable_layers
from dctps_jax.offsets.dct import DCT
from dctps_jax.ops.cost_model import SETTINGS
from dctps_jax.ops.geometry import Geometry
from dctps_jax.ops.methods import METHODS, apply_kernel, possible_methods
from dctps_jax.ops.on_support import MIN_ALPHA
from dctps_jax.ops.work import Work
from dctps_jax.pruning import allocate
from tests.native import jit_unoptimised, native, normal
from tests.small_networks import FAMILIES
from tests.small_runs import placement_on

# The geometry, the spatial shape of the inputs and nnz.
CASES = {
    "3x3": (Geometry((3, 3, 4, 6), (1, 1), ((1, 1), (1, 1))), (5, 6), 20),
    "fewer outputs than inputs": (Geometry((3, 3, 6, 2), (1, 1), ((1, 1), (1, 1))), (5, 6), 20),
    "odd channels": (Geometry((3, 3, 3, 4), (1, 1), ((1, 1), (1, 1))), (5, 6), 20),
    "1x1": (Geometry((1, 1, 4, 6), (1, 1), ((0, 0), (0, 0))), (3, 3), 5),
    "1x1, more inputs, cropping": (Geometry((1, 1, 12, 5), (1, 1), ((0, 1), (-1, 0))), (3, 4), 20),
    "valid": (Geometry((5, 5, 2, 6), (1, 1), ((0, 0), (0, 0))), (7, 6), 20),
    "cropping and padding": (Geometry((3, 2, 4, 6), (1, 1), ((-1, 2), (0, -2))), (5, 6), 20),
    "map smaller than the kernel": (Geometry((3, 3, 4, 6), (1, 1), ((1, 1), (1, 1))), (1, 2), 20),
    "strides": (Geometry((3, 3, 4, 6), (2, 2), ((1, 1), (0, 1))), (5, 6), 20),
    "1x1, strides": (Geometry((1, 1, 4, 6), (2, 1), ((0, 0), (0, 0))), (5, 6), 5),
    "grouped": (Geometry((3, 3, 2, 6), (1, 1), ((1, 1), (1, 1)), 2), (4, 4), 20),
    "depthwise": (Geometry((3, 3, 1, 6), (1, 1), ((1, 1), (1, 1)), 6), (4, 4), 20),
    "depthwise, strides": (Geometry((3, 3, 1, 6), (2, 2), ((1, 1), (1, 1)), 6), (5, 5), 20),
    "linear": (Geometry((8, 5)), (), 12),
    "wide linear": (Geometry((16, 12)), (), 40),
    "square linear": (Geometry((14, 14)), (), 20),
    "one dimension": (Geometry((4, 4, 5), (1,), ((2, 1),)), (6,), 20),
    "all weights": (Geometry((3, 3, 2, 3), (1, 1), ((1, 1), (1, 1))), (4, 4), 54),
    "no weights": (Geometry((3, 3, 4, 6), (1, 1), ((1, 1), (1, 1))), (5, 6), 0),
    "no weights, linear": (Geometry((8, 5)), (), 0),
    "no outputs": (Geometry((3, 3, 4, 6), (1, 1), ((0, 0), (0, 0))), (1, 4), 20),
}
ALPHAS = (0.7, -1.3, MIN_ALPHA, 0.4 * MIN_ALPHA, -0.4 * MIN_ALPHA, 0.0)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


class Layer:
    """A compact layer of a case with random numbers, as a function of inputs, values and α."""

    def __init__(self, case):
        self.geometry, spatial, nnz = CASES[case]
        *_, in_features, _ = self.geometry.kernel_shape
        self.inputs = normal(0, 3, *spatial, in_features * self.geometry.groups)
        size = math.prod(self.geometry.kernel_shape)
        self.support = np.sort(np.random.default_rng(1).permutation(size)[:nnz]).astype(np.int32)
        self.values = normal(2, nnz)

    def methods(self, offset):
        work = Work(self.geometry, self.inputs.shape, self.values.size, DCT if offset else None)
        return [method for method in METHODS if method in possible_methods(work)]

    def apply(self, method, inputs, values, alpha):
        work = Work(self.geometry, inputs.shape, self.values.size, None if alpha is None else DCT)
        return apply_kernel(method, work, inputs, values, alpha, jnp.asarray(self.support))

    def outputs_and_gradients(self, methods, offset=True):
        """Return a function of α that returns, for each method, the outputs and all gradients."""

        @jit_unoptimised
        def compute(alpha, inputs, values):
            trained = (inputs, values, alpha) if offset else (inputs, values)
            results = []
            for method in methods:
                apply = partial(self.apply, method) if offset else partial(self.apply, method, alpha=None)
                outputs, pull_back = jax.vjp(apply, *trained)
                results.append((outputs, *pull_back(jnp.asarray(normal(3, *outputs.shape)))))
            return results

        return lambda alpha: compute(jnp.asarray(alpha), jnp.asarray(self.inputs), jnp.asarray(self.values))


def layer_for(method):
    """Return a layer that the method can compute."""
    return next(layer for layer in map(Layer, ("3x3", "square linear")) if method in layer.methods(True))


def assert_same(found, expected, noise=0.0):
    """The error of each array, as a whole, is nothing beside the array."""
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        assert np.linalg.norm(one - other) <= 1e-9 * np.linalg.norm(other) + noise


@pytest.mark.parametrize("offset", [True, False], ids=["offset", "no offset"])
@pytest.mark.parametrize("case", CASES)
def test_the_methods_agree(case, offset):
    layer = Layer(case)
    methods = layer.methods(offset)
    assert methods[:2] == ["autodiff", "on_support"]
    compute = layer.outputs_and_gradients(methods, offset)
    for alpha in ALPHAS if offset else (0.0,):
        expected, *others = compute(alpha)
        for found in others:
            assert_same(found, expected)


def test_per_weight_is_among_the_methods_compared():
    assert sum("per_weight" in Layer(case).methods(True) for case in CASES) >= 6
    assert sum("per_weight" in Layer(case).methods(False) for case in CASES) >= 10


@pytest.mark.parametrize("case", ["3x3", "strides", "depthwise", "linear"])
def test_autodiff_is_the_convolution_with_the_kernel(case):
    layer = Layer(case)
    shape = layer.geometry.kernel_shape
    kernel = np.zeros(math.prod(shape))
    kernel[layer.support] = layer.values
    kernel = jnp.asarray(kernel.reshape(shape) + 0.7 * dct.conv_kernel(shape))
    expected, pull_back = jax.vjp(partial(native, geometry=layer.geometry), jnp.asarray(layer.inputs), kernel)
    grad_inputs, grad_kernel = pull_back(jnp.asarray(normal(3, *expected.shape)))
    gradients = grad_inputs, grad_kernel.ravel()[layer.support], jnp.sum(grad_kernel * dct.conv_kernel(shape))
    (found,) = layer.outputs_and_gradients(["autodiff"])(0.7)
    assert_same(found, (expected, *gradients))


@pytest.mark.parametrize("alpha", [0.7, 0.0])
@pytest.mark.parametrize("method", METHODS)
def test_a_frozen_alpha_needs_no_gradient(method, alpha):
    layer = layer_for(method)
    ((_, grad_inputs, grad_values, _),) = layer.outputs_and_gradients(["autodiff"])(alpha)

    @jit_unoptimised
    @partial(jax.grad, argnums=(0, 1))
    def gradients(inputs, values):
        outputs = layer.apply(method, inputs, values, jnp.asarray(alpha))
        return jnp.sum(outputs * normal(3, *outputs.shape))

    assert_same(gradients(layer.inputs, layer.values), (grad_inputs, grad_values))


def test_layers_side_by_side():
    """Under ``vmap``, with values and α of their own."""
    layer = Layer("square linear")
    given = [jnp.asarray(normal(seed, 2, *np.shape(x))) for seed, x in ((4, layer.inputs), (5, layer.values), (6, 0.7))]

    def results(method, *trained):
        outputs, pull_back = jax.vjp(partial(layer.apply, method), *trained)
        return outputs, *pull_back(jnp.asarray(normal(3, *outputs.shape)))

    @jit_unoptimised
    def compute(*given):
        together = [jax.vmap(partial(results, method))(*given) for method in layer.methods(True)]
        alone = [results("autodiff", *(x[number] for x in given)) for number in range(2)]
        return together, jax.tree.map(lambda *arrays: jnp.stack(arrays), *alone)

    together, expected = compute(*given)
    assert len(together) == 5
    for found in together:
        assert_same(found, expected)


def test_without_jit_too():
    layer = Layer("linear")
    with jax.disable_jit():
        expected, found = layer.outputs_and_gradients(["autodiff", "on_support"])(0.7)
    assert_same(found, expected)


@pytest.mark.parametrize("case", ["3x3", "fewer outputs than inputs", "strides", "depthwise", "linear"])
@pytest.mark.parametrize("offset", [True, False], ids=["offset", "no offset"])
def test_products_with_the_hessian(case, offset):
    layer = Layer(case)
    directions = normal(4, *layer.inputs.shape), normal(5, *layer.values.shape), np.float64(0.3)

    def loss(method, inputs, values, alpha):
        return jnp.sum(jnp.sin(layer.apply(method, inputs, values, alpha if offset else None)))

    @jit_unoptimised
    def products(*point):
        gradients = [jax.grad(partial(loss, method), argnums=(0, 1, 2)) for method in layer.methods(offset)]
        return [jax.jvp(gradient, point, directions)[1] for gradient in gradients]

    for alpha in (0.7, 0.4 * MIN_ALPHA):
        expected, *others = products(layer.inputs, layer.values, alpha)
        for found in others:
            assert_same(found, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("method", METHODS)
def test_results_have_the_types_of_what_was_given(method, dtype):
    layer = layer_for(method)

    @jit_unoptimised
    def compute(inputs, values, alpha):
        outputs, pull_back = jax.vjp(partial(layer.apply, method), inputs, values, alpha)
        return outputs, *pull_back(jnp.asarray(normal(3, *outputs.shape), outputs.dtype))

    found = compute(jnp.asarray(layer.inputs, dtype), jnp.asarray(layer.values, jnp.float32), jnp.float32(0.7))
    assert [array.dtype for array in found] == [dtype, dtype, jnp.float32, jnp.float32]
    (exact,) = layer.outputs_and_gradients(["autodiff"])(0.7)
    for one, other in zip(found, exact, strict=True):
        assert np.linalg.norm(one.astype(jnp.float64) - other) < 8 * jnp.finfo(dtype).eps * np.linalg.norm(other)


@pytest.mark.parametrize("varying", ["nothing", "values", "values and alpha"])
@pytest.mark.parametrize("method", METHODS)
def test_devices_that_share_a_batch(method, varying):
    # Training makes the parameters vary from device to device before it takes their gradients; a frozen α is left as it
    # is.
    layer = layer_for(method)
    inputs = jnp.asarray(normal(0, 8, *layer.inputs.shape[1:]))

    def loss(values, alpha, inputs):
        return jnp.sum(jnp.sin(layer.apply(method, inputs, values, alpha)))

    def on_each_device(values, alpha, inputs):
        local = values, alpha
        if varying != "nothing":
            local = jax.lax.pcast(values, "data", to="varying"), alpha
        if varying == "values and alpha":
            local = jax.lax.pcast((values, alpha), "data", to="varying")
        argnums = (0, 1) if varying != "values" else (0,)
        gradients = jax.grad(loss, argnums)(*local, inputs)
        return gradients if varying == "nothing" else jax.lax.psum(gradients, "data")

    together, split = PartitionSpec(), PartitionSpec("data")
    mesh = placement_on(8).replicated.mesh
    shared = jax.shard_map(on_each_device, mesh=mesh, in_specs=(together, together, split), out_specs=together)
    found = jit_unoptimised(shared)(layer.values, 0.7, inputs)
    expected = jit_unoptimised(jax.grad(loss, argnums=(0, 1)))(layer.values, 0.7, inputs)
    assert_same(found, expected[: len(found)])


@pytest.mark.parametrize(("method", "case"), [*((method, None) for method in METHODS), ("autodiff", "depthwise")])
def test_devices_with_weights_of_their_own_share_the_inputs(method, case):
    layer = Layer(case) if case else layer_for(method)
    values, alpha = normal(4, 8, *layer.values.shape), normal(5, 8)

    def gradients(values, alpha, inputs):
        def loss(inputs, values, alpha):
            return jnp.sum(jnp.sin(layer.apply(method, inputs, values, alpha)))

        return jax.grad(loss, argnums=(0, 1, 2))(inputs, values[0], alpha[0])

    def on_each_device(values, alpha, inputs):
        of_inputs, of_values, of_alpha = gradients(values, alpha, inputs)
        return of_inputs, of_values[None], of_alpha[None]

    together, split = PartitionSpec(), PartitionSpec("data")
    mesh = placement_on(8).replicated.mesh
    specs = (split, split, together), (together, split, split)
    shared = jax.shard_map(on_each_device, mesh=mesh, in_specs=specs[0], out_specs=specs[1])
    of_inputs, *others = jit_unoptimised(shared)(values, alpha, jnp.asarray(layer.inputs))
    alone = jit_unoptimised(gradients)
    each = [alone(values[[i]], alpha[[i]], jnp.asarray(layer.inputs)) for i in range(8)]
    of_inputs_of_each, *expected = (np.stack(arrays) for arrays in zip(*each, strict=True))
    assert_same((of_inputs, *others), (of_inputs_of_each.sum(0), *expected))


# Whole networks, with the DCT offset, as the plan has them computed.
NETWORKS = ["resnet18", "vgg11", "mobilenet_v2", "fixup_resnet20"]
IMAGE_SIZES = {"lenet": 32, "vgg11": 16, "small_vgg": 16}
OFFSETS = ["dct", None]


class Row(nnx.Module):
    """Eight convolutions one after another, with 32 trained weights each."""

    def __init__(self, method):
        shape = (3, 3, 16, 16)
        support = np.arange(0, math.prod(shape), math.prod(shape) // 32)[:32]
        self.layers = nnx.List(
            DCTpSConv(16, 16, (3, 3), use_bias=False, support=support, rngs=nnx.Rngs(number)) for number in range(8)
        )
        for layer in self.layers:
            layer.method = method

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return x


def test_no_method_needs_much_more_memory_than_another():
    def temporary_bytes(method):
        graph, state = nnx.split(Row(method))
        images = jax.ShapeDtypeStruct((16, 16, 16, 16), jnp.float32)

        def loss(state, images):
            return jnp.mean(nnx.merge(graph, state)(images) ** 2)

        gradients = jax.jit(jax.grad(loss, allow_int=True))
        return gradients.lower(state, images).compile(compiler_options()).memory_analysis().temp_size_in_bytes

    needed = {method: temporary_bytes(method) for method in METHODS}
    # What weights see is not to be kept from the forward pass on: it would be twice the inputs of each of the eight
    # layers.
    assert max(needed.values()) <= needed["autodiff"] + 8 * 4 * 16**4, needed


def random_number(path, shape):
    """A parameter of a size at which every part of the network counts."""
    mean, deviation = {"kernel": (0.0, 0.05), "alpha": (1.0, 0.2), "scale": (1.0, 0.1)}.get(path[-1].key, (0.0, 0.1))
    return mean + deviation * normal(sum(map(ord, jax.tree_util.keystr(path))), *shape)


def some_positions(shapes):
    counts = allocate(shapes, 0.01, "epl")
    rng = np.random.default_rng(2)
    return {path: np.sort(rng.permutation(math.prod(shape))[: counts[path]]) for path, shape in shapes.items()}


@cache
def network(name, offset):
    """Return a compact network with 1 % of its weights: a graph for each method, parameters, the rest, a batch."""
    options: dict[str, Any] = {"width": 8} if name == "resnet18" else {}
    size = IMAGE_SIZES.get(name, 8)
    graphs, shapes = {}, {}

    @jit_unoptimised  # which leaves out the initial weights, that nothing uses
    def create():
        model = create_model(
            name, num_classes=10, offset=offset, image_size=size, param_dtype=jnp.float64, rngs=nnx.Rngs(0),
            supports=some_positions(kernel_shapes(name, num_classes=10, **options)), **options,
        )  # fmt: skip
        for method in SETTINGS:
            for layer in prunable_layers(model).values():
                layer.method = method
            graphs[method] = nnx.graphdef(model)
        _, params, rest = nnx.split(model, nnx.Param, ...)
        shapes.update(nnx.to_pure_dict(params))
        return nnx.to_pure_dict(rest)

    rest = create()
    params = jax.tree_util.tree_map_with_path(lambda path, array: random_number(path, array.shape), shapes)
    return graphs, params, rest, normal(1, 2, size, size, 3)


def loss_and_gradients(name, offset, method):
    graphs, params, rest, images = network(name, offset)

    @jit_unoptimised
    @jax.value_and_grad
    def compute(params):
        logits = nnx.merge(graphs[method], params, rest)(jnp.asarray(images))
        return cross_entropy(logits, jnp.array([3, 8])).mean()

    return compute(params)


reference = cache(partial(loss_and_gradients, method="autodiff"))


@pytest.mark.parametrize(
    ("name", "offset", "method"),
    [
        # Layers that cannot be computed per weight fall back to "on_support" and "on_support_rows".
        *(
            (name, offset, method)
            for name in FAMILIES
            for offset in OFFSETS
            for method in ("per_weight", "per_weight_rows", "auto")
        ),
        *((name, "dct", "auto") for name in NETWORKS),
        *(("lenet", "dct", method) for method in ("transform", "transform_rows")),
    ],
)
@pytest.mark.usefixtures("small_families")
def test_networks_compute_the_same_by_every_method(name, offset, method):
    loss, gradients = loss_and_gradients(name, offset, method)
    expected_loss, expected = reference(name, offset)
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-9, abs=0)
    assert jax.tree.structure(gradients) == jax.tree.structure(expected)
    # Gradients that are zero in theory (a bias that BatchNorm removes) are rounding noise of the whole gradient.
    noise = 1e-12 * max(float(np.linalg.norm(gradient)) for gradient in jax.tree.leaves(expected))
    assert noise > 0
    assert_same(jax.tree.leaves(gradients), jax.tree.leaves(expected), noise)
