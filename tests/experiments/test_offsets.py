"""`experiments/offsets.py`: the matrices are what they are called, and kernels hold them."""

import math

import numpy as np
import pytest

from experiments import offsets


@pytest.mark.parametrize(("n_in", "n_out"), [(5, 3), (3, 5), (4, 4)])
def test_rows_or_columns_are_orthonormal(n_in, n_out):
    matrix = offsets.ORTHOGONAL.matrix(n_in, n_out)
    product = matrix.T @ matrix if n_in >= n_out else matrix @ matrix.T
    np.testing.assert_allclose(product, np.eye(min(n_in, n_out)), atol=1e-12)
    np.testing.assert_array_equal(matrix, offsets.ORTHOGONAL.matrix(n_in, n_out))


@pytest.mark.parametrize("shape", [(6, 4), (3, 3, 2, 5)])
def test_kernels_hold_the_matrices(shape):
    expected = offsets.ORTHOGONAL.matrix(math.prod(shape[:-1]), shape[-1]).reshape(shape)
    np.testing.assert_allclose(offsets.ORTHOGONAL.kernel(shape), expected, atol=1e-6)
    kernel = np.asarray(offsets.DELTA.kernel(shape))
    middle = kernel[tuple(width // 2 for width in shape[:-2])]
    np.testing.assert_array_equal(middle, offsets.DELTA.matrix(*shape[-2:]))
    assert kernel.sum() == middle.sum() == shape[-1]
