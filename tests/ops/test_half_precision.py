"""Every method computes a layer in half precision as in float64, within what its rounded operations can add up to."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dctps_jax.offsets.dct import DCT
from dctps_jax.ops.methods import METHODS, apply_kernel, possible_methods
from dctps_jax.ops.work import Work
from tests.native import jit_unoptimised, native, normal
from tests.ops.geometries import CASES

LAYERS = ("3x3", "1x1", "depthwise", "linear", "linear, even", "strides 2, 2")
ALPHA, NNZ = 0.7, 9
RESULTS = ("outputs", "gradient of inputs", "gradient of values", "gradient of alpha")


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def problem(case):
    """Return the work of a layer, inputs, values, support and the outputs' gradient, in float64."""
    geometry, spatial = CASES[case]
    inputs = normal(0, 2, *spatial, geometry.kernel_shape[-2] * geometry.groups)
    support = np.sort(np.random.default_rng(1).permutation(math.prod(geometry.kernel_shape))[:NNZ]).astype(np.int32)
    outputs = (2, *geometry.output_spatial(spatial), geometry.kernel_shape[-1])
    return Work(geometry, inputs.shape, NNZ, DCT), inputs, normal(2, NNZ), support, normal(3, *outputs)


def kernel_and_bound(work, values, support):
    """Return K = αD + S, and |α|E + |S|: E is at least |D| and at least the sum of the absolute products of factors."""
    shape = work.geometry.kernel_shape
    offset = np.array(DCT.kernel(shape, jnp.float64))
    bound = np.abs(offset)
    if work.factors is not None:
        (even, odd), (even_p, odd_p) = work.factors.channels(), work.factors.positions()
        even, odd = (np.abs(np.concatenate([table, table[::-1]])) for table in (even, odd))
        products = np.abs(even_p)[:, None] * even + np.abs(odd_p)[:, None] * odd
        bound = np.maximum(bound, products.reshape(shape))
    kernel, bound = ALPHA * offset, ALPHA * bound
    kernel.ravel()[support] += values
    bound.ravel()[support] += np.abs(values)
    return kernel, bound


def roundings(method, geometry):
    """Return the number of rounded operations in a row for each of RESULTS."""
    sums = geometry.num_positions if geometry.groups > 1 else 1
    layer = 11 + 2 * geometry.num_positions if method.startswith("per_weight") else 4 + sums
    return layer, layer, 4, layer + 4


@pytest.mark.parametrize("method", ["autodiff", "on_support", "on_support_rows", "transform", "transform_rows"])
@pytest.mark.parametrize(("size", "gradient"), [(1e-4, 1e-4), (300, 300)])
def test_products_of_float16_numbers_neither_vanish_nor_overflow(method, size, gradient):
    geometry, rows = CASES["linear, even"][0], 4096
    work = Work(geometry, (rows, geometry.kernel_shape[0]), NNZ, DCT)
    signs = np.where(np.arange(rows) % 2, 1, -1 if size > 1 else 1)[:, None]  # large products cancel
    inputs = jnp.asarray(size * signs * np.ones(work.inputs), jnp.float16)
    support, values = jnp.arange(NNZ, dtype=jnp.int32), jnp.zeros(NNZ, jnp.float32)

    def outputs(values):
        return apply_kernel(method, work, inputs, values, jnp.float32(ALPHA), support)

    cotangent = jnp.full((rows, geometry.kernel_shape[-1]), gradient, jnp.float16)
    (found,) = jax.vjp(outputs, values)[1](cotangent)
    exact = np.sum(np.asarray(inputs[:, :1], np.float64) * float(cotangent[0, 0]))
    np.testing.assert_allclose(found, np.full(NNZ, exact), rtol=2e-3, atol=1e-3 * size)


@pytest.mark.parametrize("case", LAYERS)
def test_outputs_and_gradients_of_every_method(case):
    """The error of a number is at most ``m·u / (1 − m·u)`` times the sum of the absolute values of its terms.

    u is the unit roundoff, 2^-8 in bfloat16 and 2^-11 in float16. m counts the rounded operations, in the longest row
    between the numbers given and a result (Higham, Accuracy and Stability of Numerical Algorithms, lemma 3.1). A
    product of matrices is added up in float32 and rounded once. With k positions of the kernel, m is

    - of outputs and the gradient of inputs, by a method that makes K, 5: the input; α·D or the value; their sum; the
      product with the input, and the sum of such products. A depthwise convolution rounds k sums instead of one.
    - the same by the factors of D, 11 + 2k: the input; the sum of its halves; the table of channels; the product and
      the sum; the table of positions; the product and 2k sums; α, the product, the value of S∗X and the last sum.
    - the same by the transform of D, 5: the input; the transform, which is computed in float32; α; the product; the sum
      with S∗X.
    - of the gradient of values, 4: both factors, the product, the sum.
    - of the gradient of α, ``(⟨Y, ∂Y⟩ − ⟨v, ∂v⟩) / α`` or ``⟨X, Dᵀ∗∂Y⟩``, 4 more than of outputs. Both inner products
      have absolute terms, which add up to at most 2 ⟨|∂K|, |K|⟩ / α.
    """
    work, inputs, values, support, gradient = problem(case)
    geometry, methods = work.geometry, possible_methods(work)
    kernel, bound = kernel_and_bound(work, values, support)

    @jit_unoptimised
    def exactly(inputs, gradient, kernel, weights):
        outputs, pull_back = jax.vjp(partial(native, geometry=geometry), inputs, kernel)
        grad_inputs, grad_kernel = pull_back(gradient)
        return outputs, grad_inputs, grad_kernel.ravel()[support], jnp.sum(grad_kernel * weights)

    exact = exactly(inputs, gradient, kernel, DCT.kernel(geometry.kernel_shape, jnp.float64))
    terms = exactly(np.abs(inputs), np.abs(gradient), bound, 2 * bound / ALPHA)

    @jit_unoptimised
    def by_every_method(inputs, values, alpha, gradient):
        found = []
        for method in methods:
            apply = partial(apply_kernel, method, work, support=jnp.asarray(support))
            outputs, pull_back = jax.vjp(apply, inputs, values, alpha)
            found.append((outputs, *pull_back(gradient)))
        return found

    for dtype in (jnp.bfloat16, jnp.float16):
        half = jnp.asarray(inputs, dtype), jnp.asarray(gradient, dtype)
        found = by_every_method(half[0], jnp.asarray(values, jnp.float32), jnp.float32(ALPHA), half[1])
        unit = float(jnp.finfo(dtype).eps) / 2
        for method, of_method in zip(methods, found, strict=True):
            for result, count, array, right, absolute in zip(
                RESULTS, roundings(method, geometry), of_method, exact, terms, strict=True
            ):
                allowed = count * unit / (1 - count * unit) * np.asarray(absolute)
                error = np.abs(np.asarray(array, np.float64) - np.asarray(right))
                assert (error <= allowed).all(), (dtype.__name__, method, result, float((error / allowed).max()))
                assert error.max() > 0, (dtype.__name__, method, result)  # it is half precision


def test_every_method_is_among_them():
    assert {method for case in LAYERS for method in possible_methods(problem(case)[0])} == set(METHODS)
