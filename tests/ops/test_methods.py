"""The registry of methods."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dctps_jax.ops
from dctps_jax.offsets import OFFSETS
from dctps_jax.ops.convolution import convolve
from dctps_jax.ops.cost_model import COSTS
from dctps_jax.ops.fusion import materialized
from dctps_jax.ops.geometry import Geometry
from dctps_jax.ops.method import MAX_APART, apply_with_gradients, kernel_of
from dctps_jax.ops.methods import METHODS
from dctps_jax.ops.target import tracing_for
from dctps_jax.ops.work import Work
from tests.absent_tpu import text_of_program

WORKS = [
    Work(geometry, inputs, 20, offset)
    for offset in (*OFFSETS.values(), None)
    for geometry, inputs in (
        (Geometry((3, 3, 4, 6), (1, 1), ((1, 1), (1, 1))), (2, 8, 8, 4)),
        (Geometry((3, 3, 4, 6), (2, 2), ((1, 1), (1, 1))), (2, 8, 8, 4)),
        (Geometry((3, 3, 1, 6), (1, 1), ((1, 1), (1, 1)), 6), (2, 8, 8, 6)),
        (Geometry((3, 3, 4, 6), (1, 1), ((0, 0), (0, 0))), (2, 2, 8, 4)),  # no outputs
        (Geometry((5, 6)), (2, 5)),
    )
]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_its_name_and_a_fallback_that_is_always_possible(name):
    method = METHODS[name]
    assert method.name == name
    assert all(METHODS[method.fallback].is_possible(work) for work in WORKS)
    assert method.fallback == name or not all(method.is_possible(work) for work in WORKS)


@pytest.mark.parametrize("platform", COSTS)
@pytest.mark.parametrize("name", METHODS)
def test_costs_are_linear(name, platform):
    """What fit_costs.py relies on."""
    costs = COSTS[platform]
    doubled = type(costs)(*(2 * cost for cost in costs))
    possible = [work for work in WORKS if METHODS[name].is_possible(work)]
    assert possible
    for work in possible:
        assert METHODS[name].cost(work, doubled) == pytest.approx(2 * METHODS[name].cost(work, costs), rel=1e-12)
        assert METHODS[name].cost(work, type(costs)(*(0.0 for _ in costs))) == 0


class Counted:
    """A method that multiplies inputs by the first value, and counts how often it is traced."""

    def __init__(self):
        self.traced = []

    def forward(self, work, inputs, values, alpha, support):
        self.traced.append("forward")
        return inputs * values[0], (inputs, values)

    def gradients(self, work, residuals, gradient):
        self.traced.append("gradients")
        inputs, values = residuals
        return gradient * values[0], jnp.zeros_like(values).at[0].set(jnp.sum(gradient * inputs)), None


def test_layers_of_equal_work_are_traced_once():
    method: Any = Counted()
    work = Work(Geometry((3, 3)), (2, 3), 2, None)

    @jax.jit
    def compute(inputs, values):
        def loss(values):
            once = apply_with_gradients(method, work, inputs, values[0], None, jnp.arange(2))
            return jnp.sum(apply_with_gradients(method, work, once, values[1], None, jnp.arange(2)))

        return jax.value_and_grad(loss)(values)

    inputs, values = jnp.ones((2, 3)), jnp.array([[2.0, 0.0], [5.0, 0.0]])
    loss, gradients = compute(inputs, values)
    assert method.traced == ["forward", "gradients"]
    assert loss == 60
    np.testing.assert_array_equal(gradients, [[30, 0], [12, 0]])
    # Without gradients the forward pass is another function, and so is what is traced for another platform.
    for traced in (3, 4):
        with tracing_for(None if traced == 3 else "tpu"):
            for _ in range(2):
                apply_with_gradients(method, work, inputs, values[0], None, jnp.arange(2))
        assert len(method.traced) == traced


@pytest.mark.parametrize("offset", [OFFSETS["dct"], None])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_kernel_is_made_in_the_dtype_of_the_inputs(dtype, offset):
    work = WORKS[0]._replace(offset=offset)
    support = jnp.arange(0, 200, 10)
    values, alpha = jnp.linspace(-1, 1, len(support)), None if offset is None else jnp.float32(0.7)
    kernel = kernel_of(work, values, alpha, support, dtype)
    exact = np.zeros(work.num_weights) if offset is None else 0.7 * np.asarray(work.offset_kernel(jnp.float32)).ravel()
    exact[np.asarray(support)] += np.asarray(values)
    # α·D, the value and their sum are rounded: three times half an epsilon of at most 1 + 0.7.
    np.testing.assert_allclose(np.asarray(kernel, np.float64).ravel(), exact, atol=2.6 * float(jnp.finfo(dtype).eps))
    program = str(jax.make_jaxpr(partial(kernel_of, work, dtype=dtype))(values, alpha, support))
    (scatter,) = [line for line in program.splitlines() if "scatter-add" in line]
    assert f"{jnp.dtype(dtype).name.replace('float', 'f')}[" in scatter.replace("bfloat", "bf")


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("shape", [(1, 1, 4, 6), (3, 3, 4, 6), (5, 6)], ids=["apart", "3×3", "linear"])
@pytest.mark.parametrize("offset", [OFFSETS["dct"], None], ids=["dct", "none"])
def test_derivatives_of_a_kernel(offset, shape, platform):
    geometry = Geometry(shape, (1, 1), ((0, 0), (0, 0))) if len(shape) == 4 else Geometry(shape)
    work, support = Work(geometry, (2, 4), 3, offset), jnp.array([1, 7, 20], jnp.int32)
    values, alpha, weights = jnp.arange(1.0, 4), jnp.float32(2.0) if offset else None, jnp.sin(jnp.arange(216.0))

    def by_hand(values, alpha):
        kernel = jnp.zeros(shape) if alpha is None else alpha * work.offset_kernel(values.dtype)
        return kernel.reshape(-1).at[support].add(values).reshape(shape)

    def derivatives(kernel):
        """Values, gradients, and the derivative of the gradients in a direction."""

        def loss(values, alpha):
            made = kernel(values, alpha)
            return jnp.sum(made**3 * weights[: made.size].reshape(shape))

        point = values, alpha
        gradient = jax.grad(loss, argnums=(0, 1)) if offset is not None else jax.grad(loss)
        return kernel(*point), gradient(*point), jax.jvp(gradient, point, point), jax.jvp(kernel, point, point)

    with tracing_for(platform):
        found = derivatives(lambda values, alpha: kernel_of(work, values, alpha, support, jnp.float32))
    expected = derivatives(by_hand)
    for one, exact in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("limit", [0, MAX_APART])
def test_the_gradient_of_alpha_is_not_joined_with_a_convolution_on_a_tpu(monkeypatch, limit):
    """Without a limit the compiler joins them: the first case shows it."""
    monkeypatch.setattr(dctps_jax.ops.method, "MAX_APART", limit)
    work = Work(Geometry((1, 1, 256, 64), (1, 1), ((0, 0), (0, 0))), (128, 32, 32, 256), 16, OFFSETS["dct"])

    def loss(values, alpha, support, inputs):
        outputs = convolve(inputs, kernel_of(work, values, alpha, support, inputs.dtype), work.geometry)
        return jnp.sum(outputs.astype(jnp.float32) ** 2)

    shapes = ((16,), jnp.float32), ((), jnp.float32), ((16,), jnp.int32), (work.inputs, jnp.bfloat16)
    arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    program = text_of_program(monkeypatch, jax.grad(loss, argnums=(0, 1)), arguments, "tpu")
    kernels = re.findall(r"= (.*\[1,1,256,64\].*) fusion\(.*conv_general_dilated", program)
    assert kernels and any("f32[]" in kernel for kernel in kernels) == (limit == 0)


def test_a_tpu_fuses_what_others_store():
    with tracing_for("tpu"):
        assert "scatter" not in str(jax.make_jaxpr(materialized)(jnp.ones(3)))
    assert "scatter" in str(jax.make_jaxpr(materialized)(jnp.ones(3)))


def test_the_readme_has_a_line_for_each_method():
    (folder,) = dctps_jax.ops.__path__
    lines = (Path(folder) / "README.md").read_text().splitlines()
    assert [line.split("`")[1] for line in lines if line.startswith("| `") and line.split("`")[1] in METHODS] == [
        *METHODS
    ]
