"""The registry of offsets, and what holds for each of them."""

import copy
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dctps_jax import DCTpSLinear, UserError
from dctps_jax.offsets import OFFSETS, Offset, find_offset

SHAPES = [(1, 1), (7, 5), (5, 7), (3, 3, 4, 6), (1, 1, 4, 6), (3, 3, 3, 6), (5, 2, 8), (3, 3, 64, 128)]


@pytest.fixture(params=OFFSETS)
def offset(request):
    return OFFSETS[request.param]


@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_matrix_and_factors_are_the_same_numbers(offset, shape):
    expected = offset.matrix(math.prod(shape[:-1]), shape[-1]).reshape(shape)
    with jax.enable_x64(True):
        kernel = offset.kernel(shape, jnp.float64)
    assert kernel.shape == shape and kernel.dtype == np.float64
    np.testing.assert_allclose(kernel, expected, rtol=0, atol=1e-14)
    factors = offset.factors(shape)
    if factors is None:
        return
    halves = factors.channels()
    channels = [np.concatenate([half, sign * half[::-1]]) for half, sign in zip(halves, (1, -1), strict=True)]
    products = [
        position[:, None] * channel[None] for position, channel in zip(factors.positions(), channels, strict=True)
    ]
    np.testing.assert_allclose(sum(products).reshape(shape), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
def test_operations_are_no_more_than_those_of_a_product(offset, shape):
    n_in, n_out = math.prod(shape[:-1]), shape[-1]
    assert 0 <= offset.operations(n_in, n_out) <= 2 * n_in * n_out


@pytest.mark.parametrize(
    ("shape", "has_factors"),
    [
        ((3, 3, 4, 5), True),
        ((3, 1, 2, 1), True),
        ((2, 4, 5), True),
        ((3, 3, 3, 5), False),  # the middle one of an odd number of channels pairs with none
        ((1, 1, 4, 5), False),  # nothing to save
        ((4, 5), False),
    ],
)
def test_kernels_with_factors(shape, has_factors):
    assert (OFFSETS["dct"].factors(shape) is not None) == has_factors
    assert OFFSETS["hadamard"].factors(shape) is None


def test_offsets_are_found_by_name(offset):
    assert find_offset(offset.name) is find_offset(offset) is offset
    assert find_offset(None) is None
    assert repr(offset) == f"Offset(name='{offset.name}')"


@pytest.mark.parametrize("name", ["DCT", "", "none", 3, True])
def test_unknown_offsets_are_refused(name):
    with pytest.raises(UserError, match=f"offset is {name!r}.*it must be None or one of: dct, hadamard"):
        find_offset(name)
    with pytest.raises(UserError, match=r"offset is 'hadamar' \(did you mean 'hadamard'\?\)"):
        DCTpSLinear(4, 2, offset="hadamar", rngs=nnx.Rngs(0))


def test_layers_with_an_offset_are_copied(offset):
    layer = DCTpSLinear(4, 2, offset=offset.name, rngs=nnx.Rngs(0))
    for twin in (copy.deepcopy(layer), nnx.clone(layer), pickle.loads(pickle.dumps(layer))):
        assert nnx.graphdef(twin) == nnx.graphdef(layer) and twin.offset == offset


def test_an_offset_of_one_s_own():
    def kernel(shape, dtype):
        return jnp.ones(shape, dtype)

    ones = Offset("ones", "Ones", lambda n_in, n_out: np.ones((n_in, n_out)), kernel, lambda n_in, n_out: n_in)
    layer = DCTpSLinear(4, 2, offset=ones, alpha_init=2.0, use_bias=False, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(layer(jnp.ones((1, 4))), [[8, 8]])
