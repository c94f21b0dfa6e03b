"""Products with the DCT offset by its fast transform: those with the matrix and with its transpose."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dctps_jax.offsets.dct import DCT, dct_matrix
from tests.native import normal

LENGTHS = [2, 4, 6, 8, 10, 12, 14, 30, 48, 64, 210]


def directions(n_in, n_out):
    """Return both products as functions, each with its matrix."""
    transform, matrix = DCT.transform(n_in, n_out), dct_matrix(n_in, n_out)
    assert transform is not None
    return (transform.product, matrix), (transform.transposed, matrix.T)


@st.composite
def corners(draw):
    length = draw(st.sampled_from(LENGTHS))
    sizes = [length, draw(st.integers(1, length))]
    return sizes if draw(st.booleans()) else sizes[::-1]


@settings(deadline=None, max_examples=25)
@given(corner=corners(), leading=st.sampled_from([(), (3,), (2, 1, 2)]))
def test_a_corner_is_transformed_as_by_its_matrix(corner, leading):
    with jax.enable_x64(True):
        for product, matrix in directions(*corner):
            x = normal(0, *leading, len(matrix))
            found = product(jnp.asarray(x))
            assert found.dtype == np.float64
            np.testing.assert_allclose(found, x @ matrix, rtol=0, atol=1e-13 * max(1, np.abs(x).max()))


@pytest.mark.parametrize("corner", [(4096, 4096), (2048, 512), (512, 2048), (3072, 768), (130, 1536)])
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16])
def test_the_error_is_of_the_size_of_the_dtypes(corner, dtype):
    with jax.enable_x64(True):
        for product, matrix in directions(*corner):
            x = jnp.asarray(normal(0, 2, len(matrix)), dtype)
            expected = np.asarray(x, np.float64) @ matrix
            found = product(x)
            assert found.dtype == dtype
            # Half precision is transformed in float32 and rounded once: by half an eps. The transform's own error is
            # that of log2 N butterflies.
            eps, wide = (float(jnp.finfo(kind).eps) for kind in (dtype, jnp.promote_types(dtype, jnp.float32)))
            bound = (eps / 2 if dtype in (jnp.bfloat16, jnp.float16) else 0) + wide * math.log2(max(corner))
            assert np.linalg.norm(np.asarray(found, np.float64) - expected) <= bound * np.linalg.norm(expected)


@pytest.mark.parametrize("corner", [(12, 12), (12, 5), (5, 12), (12, 7), (7, 12)])
def test_each_direction_is_the_others_gradient(corner):
    (product, matrix), (transposed, _) = directions(*corner)
    x, y = normal(0, 3, corner[0]).astype(np.float32), normal(1, 3, corner[1]).astype(np.float32)
    np.testing.assert_allclose(jax.vjp(product, x)[1](y)[0], y @ matrix.T, atol=1e-5)
    np.testing.assert_allclose(jax.vjp(transposed, y)[1](x)[0], x @ matrix, atol=1e-5)


def test_under_vmap():
    for product, matrix in directions(12, 8):
        x = normal(0, 2, 3, len(matrix)).astype(np.float32)
        np.testing.assert_allclose(jax.jit(jax.vmap(product))(x), x @ matrix, atol=1e-5)


def test_no_array_of_the_matrix_is_made():
    for product, matrix in directions(256, 256):
        program = jax.jit(product).lower(jax.ShapeDtypeStruct((1, len(matrix)), jnp.float32)).compile()
        assert program.memory_analysis().temp_size_in_bytes < 4 * matrix.size / 8


@pytest.mark.parametrize(
    ("n_in", "n_out", "has_one"),
    [
        (768, 768, True),
        (3072, 100, True),
        (11, 14, True),
        (1, 2, True),
        (1, 1, False),
        (7, 7, False),
        (45, 3, False),
        (22, 22, False),
        (16, 26, False),
    ],
)
def test_even_lengths_of_small_primes_have_a_transform(n_in, n_out, has_one):
    transform = DCT.transform(n_in, n_out)
    assert (transform is not None) == has_one
    assert transform is None or transform.length == max(n_in, n_out)
