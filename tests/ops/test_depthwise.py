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


def gradients(batch, spatial, strides, dtype=jnp.float64):
    """The gradient here, and the native one."""
    geometry = Geometry((3, 3, 1, 4), strides, ((1, 1), (0, 2)), 4)
    inputs = jnp.asarray(normal(0, batch, *spatial, 4), dtype)
    cotangent = jnp.asarray(normal(1, batch, *geometry.output_spatial(spatial), 4), dtype)
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


def test_sums_of_half_precision_are_single():
    """Sums of 4,096 numbers in bfloat16 would lose most of their digits."""
    found, _ = gradients(16, (16, 16), (1, 1), jnp.bfloat16)
    expected, _ = gradients(16, (16, 16), (1, 1), jnp.float32)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=0.01, atol=0.01 * float(abs(expected).max()))


@pytest.mark.parametrize(
    ("outputs", "number"),
    [((32, 32), 16), ((8, 8), 16), ((4, 4), 16), ((112, 112), 16), ((37, 6), 6), ((5,), 5), ((17,), 1)],
)
def test_parts_are_equal_and_cover_all_positions(outputs, number):
    parts = list(depthwise._parts(outputs))
    covered = [position for part in parts for position in itertools.product(*(range(s.start, s.stop) for s in part))]
    assert len(parts) == number
    assert sorted(covered) == list(itertools.product(*map(range, outputs)))
    assert len({tuple(s.stop - s.start for s in part) for part in parts}) == 1
