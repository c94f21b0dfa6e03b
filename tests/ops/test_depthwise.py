"""The kernel's gradient of depthwise convolutions, in blocks of images and parts of positions.

``test_convolution.py`` compares the convolution and all its gradients with the native ones.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dctps_jax.ops import depthwise
from dctps_jax.ops.geometry import Geometry
from tests.native import native, normal


def gradients(batch, spatial, strides, dtype=jnp.float64, scale=1.0):
    """The gradient here, and the native one."""
    geometry = Geometry((3, 3, 1, 4), strides, ((1, 1), (0, 2)), 4)
    inputs = jnp.asarray(normal(0, batch, *spatial, 4), dtype)
    cotangent = jnp.asarray(scale * normal(1, batch, *geometry.output_spatial(spatial), 4), dtype)
    kernel = jnp.asarray(normal(2, *geometry.kernel_shape), dtype)
    _, pull_back = jax.vjp(lambda kernel: native(inputs, kernel, geometry), kernel)
    return depthwise.gradient_of_kernel(cotangent, inputs, geometry), pull_back(cotangent)[0]


@pytest.mark.parametrize("block", [1, 500, 10**6])
@pytest.mark.parametrize(
    ("batch", "spatial", "strides"),
    [(6, (8, 8), (1, 1)), (7, (9, 6), (2, 1)), (4, (37, 5), (1, 2)), (1, (1, 1), (1, 1))],
)
def test_blocks_and_parts_add_up(monkeypatch, block, batch, spatial, strides):
    monkeypatch.setattr(depthwise, "BLOCK", block)
    with jax.enable_x64(True):
        found, expected = gradients(batch, spatial, strides)
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("dtype", "scale"), [(jnp.bfloat16, 1), (jnp.float16, 1), (jnp.float16, 1e-4)])
def test_half_precision_is_summed_in_single(dtype, scale):
    """Sums of 4,096 numbers in half precision would lose most digits, and small products in float16 all of them."""
    found, _ = gradients(16, (16, 16), (1, 1), dtype, scale)
    expected, _ = gradients(16, (16, 16), (1, 1), jnp.float32, scale)
    assert found.dtype == dtype
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=0, atol=0.01 * float(abs(expected).max()))


@pytest.mark.parametrize(
    ("outputs", "number"),
    [((32, 32), 16), ((8, 8), 16), ((4, 4), 16), ((112, 112), 16), ((37, 6), 6), ((5,), 5), ((17,), 1)],
)
def test_parts_are_equal_and_cover_all_positions(outputs, number):
    parts = list(depthwise._parts(outputs, 16))
    covered = [position for part in parts for position in itertools.product(*(range(s.start, s.stop) for s in part))]
    assert len(parts) == number
    assert sorted(covered) == list(itertools.product(*map(range, outputs)))
    assert len({tuple(s.stop - s.start for s in part) for part in parts}) == 1


@pytest.mark.parametrize(
    ("size", "products"), [((1, 1), 16), ((3, 3), 144), ((5, 5), 100), ((7, 7), 98), ((3, 3, 3), 108)]
)
def test_the_number_of_products_is_bounded(size, products):
    """What is compiled grows with it."""
    geometry = Geometry((*size, 1, 4), (1,) * len(size), tuple((width // 2, width // 2) for width in size), 4)
    array = jax.ShapeDtypeStruct((2, *(16,) * len(size), 4), jnp.float32)
    program = jax.make_jaxpr(lambda x, g: depthwise.gradient_of_kernel(g, x, geometry))(array, array)
    assert str(program).count(" mul ") == products + 1  # one is of the block's position
