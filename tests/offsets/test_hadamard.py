"""The Hadamard offset: scipy's matrices, generated inside programs, in layers and in every method that can take it."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.linalg import hadamard

from dctps_jax import DCTpSConv
from dctps_jax.offsets.hadamard import HADAMARD, hadamard_kernel, hadamard_matrix, hadamard_operations
from dctps_jax.ops.geometry import Geometry
from dctps_jax.ops.methods import apply_kernel, possible_methods
from dctps_jax.ops.work import Work
from tests.native import jit_unoptimised, native, normal

SHAPES = [(1, 1), (1, 7), (7, 1), (8, 8), (9, 8), (8, 9), (3, 3, 4, 6), (5, 5, 3, 6), (3, 3, 1, 32), (2, 3, 2, 3, 5)]


def exact(shape):
    n_in, n_out = math.prod(shape[:-1]), shape[-1]
    n = max(n_in, n_out)
    return (hadamard(2 ** math.ceil(math.log2(n)))[:n_in, :n_out] / math.sqrt(n)).reshape(shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_is_the_corner_of_scipys(shape):
    with jax.enable_x64(True):
        kernel = hadamard_kernel(shape, jnp.float64)
        assert kernel.shape == shape and kernel.dtype == jnp.float64
        np.testing.assert_allclose(kernel, exact(shape), rtol=1e-15)
    np.testing.assert_allclose(
        hadamard_matrix(math.prod(shape[:-1]), shape[-1]).reshape(shape), exact(shape), rtol=1e-15
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_other_types_hold_the_rounded_numbers(dtype):
    kernel = hadamard_kernel((3, 3, 4, 6), dtype)
    assert kernel.dtype == dtype
    np.testing.assert_array_equal(kernel, jnp.asarray(exact((3, 3, 4, 6)), dtype))


@pytest.mark.parametrize(("n_in", "n_out"), [(8, 8), (16, 5), (24, 8), (9 * 16, 16)])
def test_whole_columns_are_orthonormal(n_in, n_out):
    matrix = hadamard_matrix(n_in, n_out)
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(n_out), atol=1e-14)


def test_columns_have_the_norm_of_the_dct_s():
    np.testing.assert_allclose(np.linalg.norm(hadamard_matrix(75, 6), axis=0), 1)
    np.testing.assert_allclose(np.linalg.norm(hadamard_matrix(9, 32), axis=0), math.sqrt(9 / 32))


def test_a_large_kernel_is_no_constant_of_the_program():
    shape = (3, 3, 64, 64)
    program = jax.make_jaxpr(lambda s: hadamard_kernel(shape) + s)(jnp.ones(shape))
    assert all(np.size(const) <= 1 for const in program.consts)


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0)])
def test_empty_sizes_are_refused(sizes):
    for make in (hadamard_matrix, lambda *sizes: hadamard_kernel(sizes)):
        with pytest.raises(ValueError, match="whole numbers of rows and columns, at least 1"):
            make(*sizes)


def test_operations_are_the_fewer_of_a_product_and_a_transform():
    assert hadamard_operations(8, 8) == 24  # 8 · log2 8 additions; a product takes 128
    assert hadamard_operations(9, 8) == 64  # 16 · log2 16
    assert hadamard_operations(100, 1) == 200  # a product; the transform would take 128 · 7
    assert hadamard_operations(1, 1) == 0


def test_a_layer_adds_it():
    layer = DCTpSConv(4, 6, (3, 3), offset="hadamard", alpha_init=0.5, use_bias=False, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(layer.effective_kernel(), 0.5 * exact((3, 3, 4, 6)), rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.7, 0.0])
def test_every_method_that_can_take_it_computes_the_layer_with_it(alpha):
    geometry = Geometry((3, 3, 4, 6), (1, 1), ((1, 1), (1, 1)))
    inputs, values = normal(0, 2, 5, 6, 4), normal(1, 20)
    support = np.sort(np.random.default_rng(2).permutation(216)[:20]).astype(np.int32)
    work = Work(geometry, inputs.shape, 20, HADAMARD)
    gradient = normal(3, 2, 5, 6, 6)

    def by_the_kernel(inputs, values, alpha):
        kernel = jnp.zeros(216).at[support].add(values).reshape(geometry.kernel_shape)
        return native(inputs, kernel + alpha * exact(geometry.kernel_shape), geometry)

    with jax.enable_x64(True):

        @jit_unoptimised
        def compute(*trained):
            positions = jnp.asarray(support)
            applied = [partial(apply_kernel, method, work, support=positions) for method in possible_methods(work)]
            results = []
            for apply in (by_the_kernel, *applied):
                outputs, pull_back = jax.vjp(apply, *trained)
                results.append((outputs, *pull_back(jnp.asarray(gradient))))
            return results

        expected, *others = compute(jnp.asarray(inputs), jnp.asarray(values), jnp.asarray(alpha))
    assert len(others) == 3
    for found in others:
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-11)
