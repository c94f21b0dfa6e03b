"""DCTpSConv and DCTpSLinear: equal to nnx.Conv and nnx.Linear, plus an offset, minus what a mask removes."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dctps_jax import Alpha, DCTpSConv, DCTpSLinear, FrozenAlpha, Mask, SparseParam, UserError, dct
from dctps_jax.offsets import OFFSETS


def inputs(shape, dtype=np.float32, seed=7):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def numpy_init(key, shape, dtype):
    """Initialise without compiling anything: jax.random compiles a program for each new shape."""
    return inputs(shape, dtype, seed=3)


def in_quarters(arrays, *, dtype=None, inexact=True):
    """A `promote_dtype` of a user's own, which rounds kernels and inputs."""
    return [None if array is None else jnp.round(array * 4) / 4 for array in arrays]


NOTHING: Any = None  # no type may know that it is not allowed
FILLED: dict[str, Any] = {"kernel_init": numpy_init, "bias_init": numpy_init}


def assert_equal_to_rounding(found, expected):
    """A processor may sum a convolution in another order where its padding is written otherwise."""
    scale = float(np.abs(np.asarray(expected, np.float64)).max(initial=0))
    np.testing.assert_allclose(found, expected, rtol=0, atol=4 * float(np.finfo(np.float32).eps) * scale)


# (arguments, input shape)
CONVS = [
    ({"kernel_size": (3, 3)}, (2, 6, 7, 4)),
    ({"kernel_size": [3, 3], "strides": 2, "padding": "VALID"}, (2, 7, 8, 4)),
    ({"kernel_size": (3, 2), "strides": (1, 2), "padding": 1}, (2, 6, 7, 4)),
    ({"kernel_size": (3, 3), "padding": (1, 0)}, (2, 6, 7, 4)),
    ({"kernel_size": (3, 3), "padding": ((1, 0), (2, 3))}, (2, 6, 7, 4)),
    ({"kernel_size": (3, 3), "padding": [(0, 1), 2]}, (2, 6, 7, 4)),
    ({"kernel_size": (4, 3), "padding": "SAME_LOWER"}, (2, 6, 7, 4)),
    ({"kernel_size": (4, 3), "padding": "CIRCULAR", "kernel_dilation": (1, 2)}, (2, 6, 7, 4)),
    ({"kernel_size": (2, 3), "padding": "REFLECT", "kernel_dilation": 2}, (2, 6, 7, 4)),
    ({"kernel_size": (3, 3), "padding": "SAME", "kernel_dilation": 2, "strides": None}, (2, 6, 7, 4)),
    ({"kernel_size": (3, 3), "input_dilation": (2, 1), "kernel_dilation": None, "padding": 1}, (2, 5, 5, 4)),
    ({"kernel_size": (3, 3), "feature_group_count": 2}, (2, 6, 7, 4)),
    ({"kernel_size": (3, 3), "feature_group_count": 4, "strides": 2, "padding": 1}, (2, 6, 7, 4)),
    ({"kernel_size": (3, 3), "use_bias": False, "precision": "highest"}, (2, 6, 7, 4)),
    ({"kernel_size": 3, "padding": "CAUSAL", "kernel_dilation": 2}, (2, 9, 4)),
    ({"kernel_size": 3, "padding": "CIRCULAR"}, (2, 9, 4)),
    ({"kernel_size": (5,), "strides": (2,)}, (2, 9, 4)),
    ({"kernel_size": (2, 3, 2), "strides": (1, 2, 1)}, (1, 4, 5, 3, 4)),
    ({"kernel_size": (3, 3)}, (6, 7, 4)),  # no batch axis
    ({"kernel_size": (3, 3)}, (2, 1, 3, 6, 7, 4)),  # three of them
    ({"kernel_size": (3, 3)}, (0, 6, 7, 4)),
    ({"kernel_size": (3, 3), "dtype": jnp.bfloat16}, (2, 6, 7, 4)),
    ({"kernel_size": (3, 3), "promote_dtype": in_quarters}, (2, 6, 7, 4)),
    ({"kernel_size": (3, 3), "param_dtype": jnp.bfloat16}, (2, 6, 7, 4)),
    ({"kernel_size": (3, 3), "dtype": jnp.bfloat16, "preferred_element_type": jnp.float32}, (2, 6, 7, 4)),
]
LINEARS = [
    ({}, (3, 4)),
    ({"use_bias": False}, (4,)),
    ({"precision": "highest"}, (2, 1, 3, 4)),
    ({"dtype": jnp.bfloat16}, (3, 4)),
    ({"param_dtype": jnp.bfloat16}, (3, 4)),
    ({"dtype": jnp.bfloat16, "preferred_element_type": jnp.float32}, (3, 4)),
    ({"promote_dtype": in_quarters}, (3, 4)),
]
CASES = [(nnx.Conv, DCTpSConv, *case) for case in CONVS] + [(nnx.Linear, DCTpSLinear, *case) for case in LINEARS]


def conv(**options):
    return DCTpSConv(2, 4, (3, 3), rngs=nnx.Rngs(0), **options)


@pytest.mark.parametrize(("theirs", "ours"), [(nnx.Conv, DCTpSConv), (nnx.Linear, DCTpSLinear)])
def test_arguments_have_the_names_order_and_defaults_of_flax(theirs, ours):
    expected, found = (inspect.signature(cls.__init__).parameters for cls in (theirs, ours))
    assert [name for name in found if name in expected] == list(expected)
    for name, parameter in expected.items():
        assert found[name].kind == parameter.kind, name
        if not name.endswith("_init"):  # initialisers are functions made anew
            assert found[name].default == parameter.default, name
    assert list(inspect.signature(ours.__call__).parameters) == list(inspect.signature(theirs.__call__).parameters)


@pytest.mark.parametrize(("theirs", "ours", "options", "shape"), CASES)
def test_without_offset_equals_flax(theirs, ours, options, shape):
    reference = theirs(4, 8, rngs=nnx.Rngs(3), **FILLED, **options)
    layer = ours(4, 8, offset=None, rngs=nnx.Rngs(3), **FILLED, **options)
    expected, found = reference(inputs(shape)), layer(inputs(shape))
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert_equal_to_rounding(found, expected)


@pytest.mark.parametrize(
    ("theirs", "ours", "arguments"), [(nnx.Conv, DCTpSConv, (2, 4, (3, 3))), (nnx.Linear, DCTpSLinear, (6, 4))]
)
def test_random_start_equals_that_of_flax(theirs, ours, arguments):
    normal = nnx.initializers.normal(1.0)
    expected = theirs(*arguments, bias_init=normal, rngs=nnx.Rngs(3))
    found = ours(*arguments, bias_init=normal, offset=None, rngs=nnx.Rngs(3))
    np.testing.assert_array_equal(found.kernel[...], expected.kernel[...])
    np.testing.assert_array_equal(found.bias[...], expected.bias[...])
    with_offset = ours(*arguments, bias_init=normal, rngs=nnx.Rngs(3))
    np.testing.assert_array_equal(with_offset.bias[...], expected.bias[...])


@pytest.mark.parametrize(("theirs", "ours", "options", "shape"), CASES)
def test_offset_adds_to_the_kernel(theirs, ours, options, shape):
    layer = ours(4, 8, alpha_init=0.75, rngs=nnx.Rngs(3), **FILLED, **options)
    reference = theirs(4, 8, rngs=nnx.Rngs(3), **FILLED, **options)
    dtype = layer.kernel.dtype
    assert not np.any(layer.kernel[...])
    sparse = np.asarray(inputs(layer.kernel_shape, dtype))
    layer.kernel.set_value(jnp.asarray(sparse))
    offset = dct.conv_kernel(layer.kernel_shape).astype(np.float32).astype(dtype)
    reference.kernel.set_value(jnp.asarray(np.asarray(0.75, dtype) * offset + sparse))
    assert_equal_to_rounding(layer(inputs(shape)), reference(inputs(shape)))


@pytest.mark.parametrize(("groups", "padding"), [(1, "SAME"), (2, "VALID")])
def test_one_kernel_equals_the_originals_two_convolutions(groups, padding):
    options = {"feature_group_count": groups, "padding": padding, "use_bias": False, "rngs": nnx.Rngs(0)}
    layer = DCTpSConv(4, 6, (3, 3), alpha_init=-1.5, **options)
    layer.kernel[...] = inputs(layer.kernel_shape)
    parts = nnx.Conv(4, 6, (3, 3), **options)
    x = inputs((2, 6, 7, 4))
    outputs = []
    for kernel in (dct.conv_kernel(layer.kernel_shape).astype(np.float32), layer.kernel[...]):
        parts.kernel[...] = kernel
        outputs.append(parts(x))
    np.testing.assert_allclose(layer(x), -1.5 * outputs[0] + outputs[1], rtol=1e-5, atol=1e-5)


def test_one_patch_by_hand():
    layer = DCTpSConv(2, 3, (3, 3), padding="VALID", alpha_init=2.0, rngs=nnx.Rngs(0))
    x = inputs((1, 6, 7, 2))
    patch = np.asarray(x[0, 1:4, 2:5]).reshape(-1)
    np.testing.assert_allclose(layer(x)[0, 1, 2], 2 * patch @ dct.dct_matrix(18, 3), rtol=1e-5, atol=1e-6)


def test_alpha_and_initialisers():
    ones = nnx.initializers.ones
    assert not np.any(conv(kernel_init=ones).kernel[...]) and np.all(conv(kernel_init=ones, offset=None).kernel[...])
    trained, frozen = conv(alpha_init=0.5), conv(alpha_init=0.5, alpha_trainable=False)
    plain = conv(offset=None)
    assert isinstance(trained.alpha, Alpha) and isinstance(trained.alpha, nnx.Param) and trained.alpha[...] == 0.5
    assert trained.alpha.shape == () and trained.alpha.dtype == jnp.float32
    assert (
        isinstance(frozen.alpha, FrozenAlpha) and not isinstance(frozen.alpha, nnx.Param) and frozen.alpha[...] == 0.5
    )
    assert plain.alpha is None
    assert set(nnx.to_pure_dict(nnx.state(trained, nnx.Param))) == {"kernel", "bias", "alpha"}
    assert set(nnx.to_pure_dict(nnx.state(frozen, nnx.Param))) == {"kernel", "bias"}
    assert isinstance(plain.kernel, SparseParam)
    np.testing.assert_array_equal(frozen(inputs((1, 5, 5, 2))), trained(inputs((1, 5, 5, 2))))


def test_metadata_reaches_the_variables():
    layer = conv(kernel_metadata={"tag": "k"}, bias_metadata={"tag": "b"})
    assert layer.kernel.tag == "k" and layer.bias.tag == "b"


def test_no_array_is_kept_for_the_offset():
    layer = DCTpSLinear(300, 301, rngs=nnx.Rngs(0))
    assert sorted(leaf.size for leaf in jax.tree.leaves(nnx.state(layer))) == [1, 301, 300 * 301]


@pytest.mark.parametrize("name", OFFSETS)
def test_the_parts_of_a_kernel(name):
    layer = DCTpSLinear(12, 8, offset=name, support=np.arange(9), rngs=nnx.Rngs(0))
    offset = layer.offset_kernel()
    np.testing.assert_allclose(offset, OFFSETS[name].matrix(12, 8), atol=1e-6)
    layer.alpha[...] = jnp.float32(0.5)
    np.testing.assert_allclose(layer.effective_kernel(), 0.5 * offset + layer.sparse_kernel(), atol=1e-6)
    with pytest.raises(UserError, match="offset is None"):
        DCTpSLinear(12, 8, offset=None, rngs=nnx.Rngs(0)).offset_kernel()


def test_gradients_of_alpha_and_kernel():
    layer = DCTpSLinear(5, 3, use_bias=False, mask=jnp.arange(15).reshape(5, 3) % 2 == 0, rngs=nnx.Rngs(0))
    x, cotangent = inputs((4, 5)), inputs((4, 3), seed=1)
    grads = nnx.grad(lambda layer: jnp.sum(layer(x) * cotangent))(layer)
    dense = np.asarray(x).T @ np.asarray(cotangent)
    np.testing.assert_allclose(grads.alpha[...], np.sum(dense * dct.dct_matrix(5, 3)), rtol=1e-5)
    np.testing.assert_allclose(grads.kernel[...], np.where(layer.mask[...], dense, 0), rtol=1e-5)


MASKS = {"conv": inputs((3, 3, 2, 4)) > 0.5, "linear": jnp.eye(6, 4, dtype=bool)}


def masked(kind, offset):
    if kind == "conv":
        return DCTpSConv(2, 4, (3, 3), offset=offset, mask=MASKS[kind], rngs=nnx.Rngs(0), **FILLED), inputs(
            (2, 5, 5, 2)
        )
    return DCTpSLinear(6, 4, offset=offset, mask=MASKS[kind], rngs=nnx.Rngs(0), **FILLED), inputs((3, 6))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("offset", [None, "dct"])
@pytest.mark.parametrize("kind", MASKS)
def test_gradient_is_zero_off_the_mask_whatever_comes_in(kind, offset, bad):
    layer, x = masked(kind, offset)
    for poisoned, scale in ((x, bad), (x.at[0].set(bad), 1.0)):
        grads = nnx.grad(lambda layer, x=poisoned, scale=scale: jnp.sum(layer(x)) * scale)(layer)
        kernel = np.asarray(grads.kernel[...])
        assert np.all(kernel[~MASKS[kind]] == 0)
        assert not np.any(np.isfinite(kernel[MASKS[kind]]))


OPTIMIZERS = {
    "sgd": optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9)),
    "adam": optax.chain(optax.add_decayed_weights(0.1), optax.adam(0.1)),
    "adamw": optax.adamw(0.1, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("offset", [None, "dct"])
@pytest.mark.parametrize("kind", MASKS)
def test_pruned_weights_and_their_moments_stay_zero(kind, offset, name):
    layer, x = masked(kind, offset)
    off = ~np.asarray(MASKS[kind])
    optimizer = OPTIMIZERS[name]
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)
    params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)
    traces = []

    @jax.jit
    def step(params, opt_state, x):
        traces.append(1)
        grads = jax.grad(lambda params: jnp.sum(jnp.square(nnx.merge(graphdef, params, rest)(x) - 1)))(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    opt_state, start = optimizer.init(params), params
    for batch in (x, 2 * x, x - 1, x.at[0].set(jnp.nan), x, x * jnp.inf):
        params, opt_state = step(params, opt_state, batch)
        if batch is x and params is not start:
            assert np.any(params["kernel"][~off] != start["kernel"][~off])
        moments = [leaf for leaf in jax.tree.leaves(opt_state) if leaf.shape == off.shape]
        assert len(moments) == (1 if name == "sgd" else 2)
        for leaf in (params["kernel"], *moments):
            assert np.all(np.asarray(leaf)[off] == 0)
    assert np.any(np.isnan(params["kernel"][~off])), "the bad batch was meant to spoil the rest"
    assert len(traces) == 1


def test_set_mask_zeroes_and_may_be_called_again():
    layer = conv(offset=None)
    assert layer.mask is None
    before = np.asarray(layer.kernel[...])
    layer.set_mask(MASKS["conv"].astype(jnp.int32))  # any numbers: not zero is True
    assert isinstance(layer.mask, Mask) and layer.mask.dtype == bool
    np.testing.assert_array_equal(layer.kernel[...], np.where(MASKS["conv"], before, 0))
    layer.set_mask(np.zeros((3, 3, 2, 4), bool))
    assert np.all(layer.kernel[...] == 0) and np.all(layer(inputs((1, 5, 5, 2))) == 0)


@pytest.mark.parametrize("mask", [np.full((4, 3), 0.5), np.full((4, 3), np.nan), -np.eye(4, 3)])
def test_a_mask_of_other_values_than_0_and_1_is_refused(mask):
    layer = DCTpSLinear(4, 3, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="the mask has other values than 0 and 1; give booleans"):
        layer.set_mask(mask)
    layer.set_mask(np.eye(4, 3))
    assert layer.mask is not None and layer.mask[...].sum() == 3


def test_mask_hides_weights_that_are_not_zero():
    layer = conv(offset=None, mask=MASKS["conv"], use_bias=False)
    expected = layer(inputs((1, 5, 5, 2)))
    layer.kernel[...] = jnp.where(layer.mask[...], layer.kernel[...], jnp.nan)
    np.testing.assert_array_equal(layer(inputs((1, 5, 5, 2))), expected)


@pytest.mark.parametrize("mask", [None, MASKS["conv"]])
@pytest.mark.parametrize("offset", [None, "dct"])
def test_split_and_merge_round_trip(offset, mask):
    layer = conv(offset=offset, mask=mask, bias_init=numpy_init, alpha_trainable=False)
    graphdef, params, masks, rest = nnx.split(layer, nnx.Param, Mask, ...)
    assert set(nnx.to_pure_dict(masks)) == (set() if mask is None else {"mask"})
    assert set(nnx.to_pure_dict(rest)) == ({"alpha"} if offset else set())
    merged = nnx.merge(graphdef, *(nnx.to_pure_dict(part) for part in (params, masks, rest)))
    np.testing.assert_array_equal(merged(inputs((1, 5, 5, 2))), layer(inputs((1, 5, 5, 2))))
    assert nnx.graphdef(layer) == nnx.graphdef(conv(offset=offset, mask=mask, alpha_trainable=False))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: conv(offset="dft"),
            r"offset is 'dft' \(did you mean 'dct'\?\); it must be None or one of: dct, hadamard",
        ),
        (lambda: conv(mask=jnp.ones((3, 3, 4, 2), bool)), r"mask has shape \(3, 3, 4, 2\).*\(3, 3, 2, 4\)"),
        (lambda: conv().set_mask(np.ones((72,), bool)), r"mask has shape \(72,\).*\(3, 3, 2, 4\)"),
        (lambda: conv(feature_group_count=3), r"feature_group_count is 3; it must divide in_features \(2\)"),
        (lambda: conv(feature_group_count=0), "feature_group_count is 0"),
        (lambda: conv(padding="SOME"), "padding is 'SOME'; it must be 'SAME', 'VALID'"),
        (lambda: conv(padding="CAUSAL"), "one spatial dimension, the kernel has 2"),
        (lambda: conv(padding=(1, 2, 3)), r"padding is \(1, 2, 3\); .* a sequence of 2 ints"),
        (lambda: conv(padding=((1, 2, 3), 1)), "a sequence of 2 ints"),
        (lambda: DCTpSLinear(0, 3, rngs=nnx.Rngs(0)), "in_features is 0; it must be a whole number of at least 1"),
        (lambda: DCTpSConv(2, 3, (0, 3), rngs=nnx.Rngs(0)), r"kernel_size is \(0, 3\); every size"),
        (lambda: DCTpSConv(2, 3, (), rngs=nnx.Rngs(0)), r"kernel_size is \(\); it must have at least one dimension"),
        (lambda: DCTpSLinear(2, 3, rngs=nnx.Rngs(0))(NOTHING), "the inputs have no shape, they are None"),
        (lambda: DCTpSLinear(2, 3, mask=jnp.ones((3, 2), bool), rngs=nnx.Rngs(0)), "mask has shape"),
    ],
)
def test_mistakes_are_named(build, message):
    with pytest.raises(UserError, match=message):
        build()


def test_compact_layers_compute_the_same_and_have_gradients_at_their_positions():
    layer = conv(kernel_init=numpy_init, offset=None)
    mask = np.random.default_rng(0).random(layer.kernel_shape) < 0.3
    layer.set_mask(mask)
    x = inputs((2, 6, 7, 2))
    expected, masked_gradient = layer(x), nnx.grad(lambda layer: (layer(x) ** 2).sum())(layer).kernel[...]
    layer.set_support(np.flatnonzero(mask))
    assert layer.mask is None and layer.kernel[...].shape == (mask.sum(),)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-6)
    gradient = nnx.grad(lambda layer: (layer(x) ** 2).sum())(layer).kernel[...]
    np.testing.assert_allclose(gradient, masked_gradient[mask], rtol=1e-5)
    layer.set_mask(mask)
    assert layer.support is None
    np.testing.assert_array_equal(layer(x), expected)


def test_a_support_at_construction_equals_one_set_later():
    positions = np.array([0, 5, 17])
    for offset in (None, "dct"):
        first = conv(kernel_init=numpy_init, offset=offset, support=positions)
        second = conv(kernel_init=numpy_init, offset=offset)
        second.set_support(positions)
        dense = conv(kernel_init=numpy_init, offset=offset)
        np.testing.assert_array_equal(first.kernel[...], second.kernel[...])
        np.testing.assert_array_equal(first.kernel[...], dense.kernel[...].ravel()[positions])
        assert first.kernel[...].shape == (3,) and first.support[...].dtype == jnp.int32


@pytest.mark.parametrize(
    ("positions", "problem"),
    [
        ([3, 2], "ascend"),
        ([2, 2], "ascend"),
        ([-1, 2], "ascend"),
        ([0, 10**6], "lie in"),
        ([[0, 1]], "list of integer positions"),
        ([0.5], "list of integer positions"),
        (np.array([5, 3, 5], np.uint32), "ascend"),  # their differences wrap around
    ],
)
def test_impossible_supports_are_refused(positions, problem):
    with pytest.raises(UserError, match=problem):
        conv().set_support(np.array(positions))


def test_mask_and_support_exclude_each_other():
    with pytest.raises(UserError, match="one of them"):
        conv(mask=np.ones((3, 3, 2, 4), bool), support=np.array([1]))
