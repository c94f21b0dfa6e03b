"""BatchNorm with its ReLU: flax's BatchNorm with a ReLU behind it, in values, gradients and running statistics."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.nnx.nn import dtypes
from jax.sharding import PartitionSpec

from dctps_jax.models.normalization import BatchNorm
from dctps_jax.ops.target import tracing_for
from tests.native import jit_unoptimised, normal
from tests.small_runs import placement_on

FEATURES = 6


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def numbers(shape=(4, 3, 5, FEATURES)):
    """Inputs that are neither centred nor of unit variance."""
    return 2 * normal(0, *shape) + np.arange(shape[-1])


def parts_of(cls, **options):
    """Return graph, parameters and statistics of a layer, the same random numbers for both classes."""
    options = {"momentum": 0.7, "epsilon": 1e-3, "param_dtype": jnp.float64, "rngs": nnx.Rngs(0)} | options
    graph, params, _ = nnx.split(cls(FEATURES, **options), nnx.Param, nnx.BatchStat)
    params = {
        name: jnp.asarray(normal(seed, FEATURES) + 0.5, value.dtype)
        for seed, (name, value) in enumerate(nnx.to_pure_dict(params).items(), start=1)
    }
    return graph, params, {"mean": jnp.asarray(normal(3, FEATURES)), "var": jnp.asarray(normal(4, FEATURES) ** 2)}


def apply(graph, stats, relu, params, x, **arguments):
    """Return the outputs and the statistics after the call; flax's layer gets its ReLU here."""
    layer = nnx.merge(graph, params, stats)
    if isinstance(layer, BatchNorm):
        outputs = layer(x, relu=relu, **arguments)
    else:
        outputs = layer(x, **arguments)
        outputs = nnx.relu(outputs) if relu else outputs
    return outputs, nnx.to_pure_dict(nnx.state(layer, nnx.BatchStat))


def everything(cls, relu, x, arguments=None, gradient_mean=0, **options):
    """Return outputs, gradients of the parameters and the inputs, and the statistics after the call."""
    graph, params, stats = parts_of(cls, **options)

    @jit_unoptimised
    def compute(params, x):
        outputs, pull_back, after = jax.vjp(
            lambda params, x: apply(graph, stats, relu, params, x, **(arguments or {})), params, x, has_aux=True
        )
        gradient = normal(5, *outputs.shape) + gradient_mean
        return outputs, pull_back(jnp.asarray(gradient, outputs.dtype)), after

    return compute(params, jnp.asarray(x))


def assert_equal(found, expected, tolerance=1e-10):
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
    chex.assert_trees_all_close(found, expected, rtol=tolerance, atol=tolerance)


def is_by_hand(relu, x, arguments=None, **options):
    """Whether the layer brings gradients of its own, which flax's layer does not."""
    graph, params, stats = parts_of(BatchNorm, **options)
    call = partial(apply, graph, stats, relu, **(arguments or {}))
    return "custom_vjp_call" in str(jax.make_jaxpr(call)(params, jnp.asarray(x)))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((4, 3, 5, FEATURES), {}),
        ((8, FEATURES), {}),
        ((2, 3, 2, 2, FEATURES), {"axis": 4}),
        ((4, 3, 5, FEATURES), {"use_bias": False}),
        ((4, 3, 5, FEATURES), {"use_scale": False}),
        ((8, FEATURES), {"use_scale": False, "use_bias": False}),
        ((8, FEATURES), {"momentum": 0.99, "epsilon": 1e-5}),
    ],
)
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_training_equals_flax(platform, shape, options, relu):
    x = numbers(shape)
    with tracing_for(platform):
        found = everything(BatchNorm, relu, x, **options)
        assert is_by_hand(relu, x, **options)
    assert_equal(found, everything(nnx.BatchNorm, relu, x, **options))


def swapped(values, **options):
    return dtypes.promote_dtype(values, **options)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    ("shape", "options", "arguments"),
    [
        ((4, 3, 5, FEATURES), {"use_running_average": True}, {}),
        ((4, 3, 5, FEATURES), {}, {"use_running_average": True}),
        ((4, 3, 5, FEATURES), {}, {"mask": normal(6, 4, 3, 5, FEATURES) > 0}),
        ((4, FEATURES, 5), {"axis": 1}, {}),
        ((4, 3, 5, FEATURES), {"use_fast_variance": False}, {}),
        ((4, 3, 5, FEATURES), {"promote_dtype": swapped}, {}),
    ],
    ids=["layer in eval mode", "call in eval mode", "mask", "axis", "slow variance", "own promotion"],
)
def test_the_rest_is_flax(shape, options, arguments, relu):
    x = numbers(shape)
    found = everything(BatchNorm, relu, x, arguments, **options)
    assert_equal(found, everything(nnx.BatchNorm, relu, x, arguments, **options))
    assert not is_by_hand(relu, x, arguments, **options)


def test_a_call_in_train_mode_of_a_layer_in_eval_mode():
    options = {"use_running_average": True}
    found, expected = (
        everything(cls, True, numbers(), {"use_running_average": False}, **options)
        for cls in (BatchNorm, nnx.BatchNorm)
    )
    assert_equal(found, expected)
    assert is_by_hand(True, numbers(), {"use_running_average": False}, **options)


def test_the_mode_must_be_known():
    layer = BatchNorm(FEATURES, use_running_average=None, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="use_running_average"):
        layer(jnp.ones((4, FEATURES)))
    assert layer(jnp.ones((4, FEATURES)), use_running_average=True).shape == (4, FEATURES)


@pytest.mark.parametrize("features", [1, FEATURES - 1])
def test_other_numbers_of_features_are_refused(features):
    layer = BatchNorm(FEATURES, rngs=nnx.Rngs(0))
    with pytest.raises((TypeError, ValueError)):
        layer(jnp.ones((4, features), jnp.float32))


@pytest.mark.parametrize("relu", [False, True])
def test_products_with_the_hessian(relu):
    directions = {"scale": normal(6, FEATURES), "bias": normal(7, FEATURES)}, normal(8, 8, FEATURES)

    def product(cls):
        graph, params, stats = parts_of(cls)
        gradient = jax.grad(lambda params, x: jnp.sin(apply(graph, stats, relu, params, x)[0]).sum(), argnums=(0, 1))

        @jit_unoptimised
        def compute(*point):
            return jax.jvp(gradient, point, directions)[1]

        return compute(params, numbers((8, FEATURES)))

    assert_equal(product(BatchNorm), product(nnx.BatchNorm))


@pytest.mark.parametrize("relu", [False, True])
def test_a_channel_without_variance(relu):
    x = numbers()
    x[..., 2] = 0.1
    found, expected = (everything(cls, relu, x) for cls in (BatchNorm, nnx.BatchNorm))
    assert all(np.isfinite(array).all() for array in jax.tree.leaves(found))
    assert_equal(found[0], expected[0])


@pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types")  # flax's float64 into float32 statistics
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        ("float32", {}),
        ("bfloat16", {}),
        ("bfloat16", {"dtype": jnp.bfloat16}),
        ("bfloat16", {"dtype": jnp.float32}),
        ("float32", {"dtype": jnp.bfloat16}),
        ("bfloat16", {"param_dtype": jnp.bfloat16}),
        ("bfloat16", {"use_scale": False, "use_bias": False}),
        ("float16", {"dtype": jnp.float16, "param_dtype": jnp.float16}),
        ("float32", {"dtype": jnp.float64}),
        ("float32", {"param_dtype": jnp.float64}),
        ("float64", {}),
    ],
)
def test_results_have_the_types_and_the_precision_of_flax(inputs, options, mode):
    options = {"param_dtype": jnp.float32, "use_running_average": mode == "eval", "rngs": nnx.Rngs(0)} | options
    x = jnp.asarray(numbers(), inputs)
    ours, theirs = BatchNorm(FEATURES, **options), nnx.BatchNorm(FEATURES, **options)
    outputs, expected = ours(x, relu=True), nnx.relu(theirs(x))
    assert outputs.dtype == expected.dtype
    tolerance = max(8 * float(jnp.finfo(expected.dtype).eps), 1e-13)
    np.testing.assert_allclose(
        outputs.astype(jnp.float64), expected.astype(jnp.float64), rtol=tolerance, atol=tolerance
    )
    for name in ("mean", "var"):
        found, wanted = (getattr(layer, name)[...] for layer in (ours, theirs))
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("relu", [False, True])
def test_half_precision_is_as_close_as_its_rounding(relu):
    x = numbers((16, 4, 4, FEATURES))
    outputs, (of_params, of_inputs), _ = everything(
        BatchNorm, relu, jnp.asarray(x, jnp.bfloat16), dtype=jnp.bfloat16, param_dtype=jnp.float32
    )
    expected, (of_params_exact, of_inputs_exact), _ = everything(BatchNorm, relu, x)
    assert outputs.dtype == of_inputs.dtype == jnp.bfloat16 and of_params["scale"].dtype == jnp.float32
    pairs = [
        (outputs, expected),
        (of_inputs, of_inputs_exact),
        *((of_params[k], of_params_exact[k]) for k in of_params),
    ]
    for found, exact in pairs:
        assert np.linalg.norm(found.astype(jnp.float64) - exact) < 0.02 * np.linalg.norm(exact)


@pytest.mark.parametrize("varying", [True, False])
@pytest.mark.parametrize("options", [{}, {"use_scale": False, "use_bias": False}], ids=["affine", "no parameters"])
def test_devices_that_share_a_batch(options, varying):
    # Training makes the parameters vary from device to device before it takes their gradients.
    x = numbers((16, 3, 2, FEATURES))

    def gradients(graph, stats, params, x):
        def loss(params, x):
            outputs, after = apply(graph, stats, True, params, x)
            return jnp.sin(outputs).sum(), (outputs, after)

        of_params_and_inputs, (outputs, after) = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)
        return *of_params_and_inputs, outputs, after

    def on_each_device(graph, stats, params, x):
        if varying:
            params = jax.lax.pcast(params, "data", to="varying")
        of_params, *others = gradients(graph, stats, params, x)
        return jax.lax.psum(of_params, "data") if varying else of_params, *others

    graph, params, stats = parts_of(BatchNorm, **options)
    expected = jit_unoptimised(partial(gradients, graph))(stats, params, x)
    graph, *_ = parts_of(BatchNorm, axis_name="data", **options)
    together, split = PartitionSpec(), PartitionSpec("data")
    shared = jax.shard_map(
        partial(on_each_device, graph),
        mesh=placement_on(8).replicated.mesh,
        in_specs=(together, together, split),
        out_specs=(together, split, split, together),
    )
    assert_equal(jit_unoptimised(shared)(stats, params, x), expected)


@pytest.mark.parametrize("gradient_mean", [0, 3])
@pytest.mark.parametrize(
    ("platform", "mean", "tolerance"),
    [("cpu", 0, 1e-6), ("cpu", 3, 3e-5), ("cpu", 30, 3e-4), ("tpu", 3, 3e-5), ("tpu", 30, 1e-4)],
)
def test_a_large_mean_costs_digits(platform, mean, tolerance, gradient_mean):
    """The variance is the mean of squares less the squared mean, and the gradients are differences of sums, too."""
    x = normal(0, 16, 8, 8, FEATURES) + mean
    with tracing_for(platform):
        _, found, _ = everything(BatchNorm, False, x, gradient_mean=gradient_mean, dtype=jnp.float32)
    _, expected, _ = everything(BatchNorm, False, x, gradient_mean=gradient_mean)
    for one, exact in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, exact, atol=tolerance * float(abs(exact).max()))


def test_statistics_keep_their_type_and_pass_no_gradient():
    graph, params, stats = parts_of(BatchNorm)

    def mean_after(x):
        return apply(graph, stats, False, params, x)[1]["mean"].sum()

    np.testing.assert_array_equal(jax.grad(mean_after)(jnp.asarray(numbers())), 0)
    layer = BatchNorm(FEATURES, rngs=nnx.Rngs(0))
    layer(jnp.asarray(numbers()))
    assert layer.mean.dtype == layer.var.dtype == jnp.float32
