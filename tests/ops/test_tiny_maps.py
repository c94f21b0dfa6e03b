"""Convolutions of maps smaller than the window, on a TPU: the native ones, and no reversed kernel is stored."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dctps_jax.ops import tiny_maps
from dctps_jax.ops.convolution import convolve
from dctps_jax.ops.geometry import Geometry, native_convolution
from dctps_jax.ops.target import tracing_for
from tests.absent_tpu import text_of_program
from tests.native import jit_unoptimised, native, normal

SAME = Geometry((3, 3, 256, 256), (1, 1), ((1, 1), (1, 1)))


@pytest.mark.parametrize(
    ("spatial", "size", "pads"),
    [
        ((2, 2), (3, 3), ((1, 1), (1, 1))),
        ((1, 1), (3, 3), ((1, 1), (1, 1))),
        ((2, 1), (3, 2), ((0, 2), (1, 0))),
        ((2,), (4,), ((2, 1),)),
        ((2, 1, 2), (3, 3, 3), ((1, 1),) * 3),
    ],
)
def test_values_and_gradients_are_the_native_ones(monkeypatch, spatial, size, pads):
    monkeypatch.setattr(tiny_maps, "MIN_CHANNELS_PRODUCT", 1)
    geometry = Geometry((*size, 3, 4), (1,) * len(size), pads)

    def everything(convolution):
        @jit_unoptimised
        def compute(inputs, kernel, cotangent):
            outputs, pull_back = jax.vjp(convolution, inputs, kernel)
            return outputs, pull_back(cotangent)

        return compute(inputs, normal(1, *geometry.kernel_shape), cotangent)

    with jax.enable_x64(True), tracing_for("tpu"):
        inputs = jnp.asarray(normal(0, 5, *spatial, 3))
        cotangent = jnp.asarray(normal(2, 5, *geometry.output_spatial(spatial), 4))
        assert tiny_maps.is_taken(inputs, geometry)
        found = everything(lambda inputs, kernel: convolve(inputs, kernel, geometry))
        expected = everything(lambda inputs, kernel: native(inputs, kernel, geometry))
    for one, exact in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, exact, rtol=1e-10, atol=1e-10)


def test_gradients_have_derivatives(monkeypatch):
    """Forward over reverse, as the Hessian products of GraSP."""
    monkeypatch.setattr(tiny_maps, "MIN_CHANNELS_PRODUCT", 1)
    geometry = Geometry((3, 3, 3, 4), (1, 1), ((1, 1), (1, 1)))
    point = jnp.asarray(normal(0, 2, 2, 2, 3), jnp.float32), jnp.asarray(normal(1, *geometry.kernel_shape), jnp.float32)

    def product(convolution):
        gradient = jax.grad(lambda *point: jnp.sin(convolution(*point, geometry)).sum(), argnums=(0, 1))
        return jit_unoptimised(lambda *point: jax.jvp(gradient, point, point))(*point)

    with tracing_for("tpu"):
        found, expected = product(convolve), product(native)
    for one, exact in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("platform", "spatial", "changes", "is_taken"),
    [
        ("tpu", (2, 2), {}, True),
        ("tpu", (2, 3), {}, False),
        ("cpu", (2, 2), {}, False),
        ("gpu", (2, 2), {}, False),
        ("tpu", (2, 2), {"strides": (2, 2)}, False),
        ("tpu", (2, 2), {"kernel_shape": (3, 3, 1, 256), "groups": 256}, False),
        ("tpu", (2, 2), {"kernel_shape": (3, 3, 64, 256)}, False),
        ("tpu", (2, 2), {"pads": ((0, 0), (0, 0))}, False),
        ("tpu", (), {"kernel_shape": (256, 256), "strides": (), "pads": ()}, False),
        ("tpu", (5,), {"kernel_shape": (256, 256), "strides": (), "pads": ()}, False),
    ],
)
def test_which_convolutions_are_mirrored(platform, spatial, changes, is_taken):
    with tracing_for(platform):
        assert tiny_maps.is_taken(jnp.zeros((1, *spatial, 256)), SAME._replace(**changes)) == is_taken


@pytest.mark.parametrize("convolution", [tiny_maps.convolve, native_convolution])
def test_no_kernel_is_reversed_and_stored(monkeypatch, convolution):
    """The native convolution shows that it is needed."""
    arguments = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((128, 2, 2, 256), SAME.kernel_shape)]
    program = text_of_program(monkeypatch, lambda *arrays: convolution(*arrays, SAME), arguments, "tpu")
    is_reversed = re.search(r"= bf16\[3,3,256,256\]\S* reverse\(", program) is not None
    assert is_reversed == (convolution is native_convolution)
