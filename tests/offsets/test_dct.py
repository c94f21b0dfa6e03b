"""The offset kernels: scipy's DCT, the original's float32 kernels, and the way large ones are generated."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dct as scipy_dct

from dctps_jax.offsets import dct
from tests import reference_data as reference

# (3, 3, 128, 64) has 73,728 weights, the others are long in one direction or have an odd radix.
LARGE = [(3, 3, 128, 64), (260, 261), (17, 4000), (3000, 23), (1, 70000), (3, 3, 1, 9000), (3, 2, 3, 37, 130)]
SMALL = [(3, 3, 4, 8), (5, 5, 3, 6), (10, 7), (3, 3, 1, 32), (1, 1)]


def scipys(vectors):
    return np.asarray(scipy_dct(vectors, norm="ortho"))


def exact(shape):
    n_in, n_out = math.prod(shape[:-1]), shape[-1]
    n = max(n_in, n_out)
    # scipy transforms unit vectors one block at a time, so that wide kernels need no n × n array.
    rows = np.zeros((n_in, n))
    rows[np.arange(n_in), np.arange(n_in)] = 1
    return scipys(rows)[:, :n_out].reshape(shape)


def test_the_tests_cover_both_sides_of_the_constant_size():
    assert all(math.prod(shape) > dct.MAX_CONSTANT_SIZE for shape in LARGE)
    assert all(math.prod(shape) <= dct.MAX_CONSTANT_SIZE for shape in SMALL)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 70), st.integers(1, 70))
def test_matrix_is_the_corner_of_scipys(n_in, n_out):
    matrix = dct.dct_matrix(n_in, n_out)
    assert matrix.shape == (n_in, n_out) and matrix.dtype == np.float64
    np.testing.assert_allclose(matrix, exact((n_in, n_out)), rtol=0, atol=2e-15)
    square = dct.dct_matrix(n_in, n_in)
    np.testing.assert_allclose(square, scipys(np.eye(n_in)), rtol=0, atol=2e-15)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(0, 60))
def test_columns_are_orthonormal_where_they_are_whole(n_out, surplus):
    matrix = dct.dct_matrix(n_out + surplus, n_out)
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(n_out), rtol=0, atol=1e-13)


def test_columns_that_are_cut_short_are_not_rescaled():
    np.testing.assert_array_equal(dct.dct_matrix(9, 32), dct.dct_matrix(32, 32)[:9])
    np.testing.assert_allclose(dct.dct_matrix(1, 4)[0, 0], 0.5)


def test_matrix_by_hand():
    c = math.cos(math.pi / 4)
    np.testing.assert_allclose(dct.dct_matrix(2, 2), [[c, c], [c, -c]], rtol=0, atol=3e-16)


KERNELS = reference.arrays("dct_kernels")


@pytest.mark.parametrize("name", sorted({key.rpartition("/")[0] for key in KERNELS}))
def test_kernel_equals_the_originals(name):
    expected, rounded = KERNELS[f"{name}/f64"], KERNELS[f"{name}/f32"]
    kernel = dct.conv_kernel(expected.shape)
    np.testing.assert_allclose(kernel, expected, rtol=0, atol=2e-15)
    # Where the cosine is zero in theory both hold nothing but rounding.
    held = np.abs(expected) >= 1e-15
    assert held.mean() > 0.9
    np.testing.assert_array_equal(kernel.astype(np.float32)[held], rounded[held])
    if expected.size <= dct.MAX_CONSTANT_SIZE:
        np.testing.assert_array_equal(np.asarray(dct.offset_kernel(expected.shape))[held], rounded[held])


@pytest.mark.parametrize("shape", [(5, 2, 7), (3, 3, 4, 8), (2, 3, 2, 3, 5), (6, 4), [3, 3, 2, 4]])
def test_kernel_is_the_matrix_over_a_flattened_patch(shape):
    kernel = dct.conv_kernel(shape)
    assert kernel.shape == tuple(shape)
    np.testing.assert_array_equal(kernel.reshape(-1, shape[-1]), dct.dct_matrix(math.prod(shape[:-1]), shape[-1]))


def test_patch_is_flattened_position_first_then_channel():
    kernel, matrix = dct.conv_kernel((2, 3, 5, 4)), dct.dct_matrix(30, 4)
    np.testing.assert_array_equal(kernel[1, 2, 3], matrix[(1 * 3 + 2) * 5 + 3])


@pytest.mark.parametrize("shape", LARGE + SMALL)
def test_float32_offset_is_within_its_bound(shape):
    kernel = dct.offset_kernel(shape)
    assert kernel.shape == shape and kernel.dtype == jnp.float32
    error = np.abs(np.asarray(kernel, np.float64) - exact(shape)).reshape(-1, shape[-1])
    scale = np.sqrt(np.where(np.arange(shape[-1]) == 0, 1, 2) / max(math.prod(shape[:-1]), shape[-1]))
    assert (error <= 2e-7 * scale).all()


@pytest.mark.parametrize("shape", LARGE + SMALL)
def test_float64_offset_is_exact(shape):
    with jax.enable_x64(True):
        kernel = np.asarray(dct.offset_kernel(shape, jnp.float64))
    assert kernel.dtype == np.float64
    np.testing.assert_allclose(kernel, dct.conv_kernel(shape), rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("shape", [LARGE[0], SMALL[0]])
def test_half_precision_is_the_rounded_kernel_not_a_product_of_rounded_tables(shape, dtype):
    kernel = dct.offset_kernel(shape, dtype)
    assert kernel.dtype == dtype
    expected = jnp.asarray(exact(shape), jnp.float32).astype(dtype)
    step = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(kernel.astype(jnp.float32), expected.astype(jnp.float32), rtol=step, atol=1e-7)
    # A float32 value a hair off a boundary rounds the other way, but seldom.
    assert np.mean(np.asarray(kernel != expected)[np.abs(exact(shape)) >= 1e-15]) < 5e-3


def constant_sizes(function, *arguments):
    """Return the sizes of all constants in the traced and in the compiled program of ``function``."""
    sizes = [np.size(const) for const in jax.make_jaxpr(function)(*arguments).consts]
    text = jax.jit(function).lower(*arguments).compile().as_text() or ""
    for dims in re.findall(r"= \w+\[([\d,]*)\][^=\n]* constant\(", text):
        sizes.append(math.prod(int(dim) for dim in dims.split(",") if dim))
    return sizes


def test_program_of_a_large_kernel_holds_only_small_tables():
    shape = (3, 3, 128, 64)
    sizes = constant_sizes(lambda alpha, s: alpha * dct.offset_kernel(shape) + s, jnp.float32(2), jnp.ones(shape))
    # The radix is 32, of 1152 rows: two tables each of 36 coarse and 32 fine rows.
    assert max(sizes) <= 36 * 64
    # The same search finds the constant where there is one.
    small = (3, 3, 16, 16)
    assert max(constant_sizes(lambda s: dct.offset_kernel(small) + s, jnp.ones(small))) == math.prod(small)


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0), (-1, 3), (0, 0)])
def test_empty_sizes_are_refused(sizes):
    for function in (lambda: dct.dct_matrix(*sizes), lambda: dct.conv_kernel((1, 1, *sizes))):
        with pytest.raises(ValueError, match="whole numbers of rows and columns, at least 1"):
            function()


def test_empty_large_kernel_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        dct.offset_kernel((0, 10**6))
