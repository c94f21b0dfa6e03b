"""Activations as rows: what lies where, and back again."""

import jax.numpy as jnp
import numpy as np
import pytest

from dctps_jax.ops import rows as rows_module
from dctps_jax.ops.geometry import Geometry
from dctps_jax.ops.rows import PIECE, Layout, Places, add_rows, inner_rows
from tests.native import normal
from tests.ops.geometries import CASES

pytestmark = pytest.mark.filterwarnings("error")


def layout_of(case):
    geometry, spatial = CASES[case]
    *_, in_features, _ = geometry.kernel_shape
    return Layout(geometry, (2, *spatial, in_features * geometry.groups))


@pytest.mark.parametrize("many_rows", [rows_module.MANY_ROWS, 1])
@pytest.mark.parametrize("case", CASES)
def test_what_goes_into_rows_comes_out_of_them(case, many_rows, monkeypatch):
    monkeypatch.setattr(rows_module, "MANY_ROWS", many_rows)
    layout = layout_of(case)
    outputs = normal(0, 2, *layout.outputs, layout.geometry.kernel_shape[-1]).astype(np.float32)
    rows = layout.rows_of_outputs(jnp.asarray(outputs))
    assert rows.shape == (outputs.shape[-1], layout.length)
    np.testing.assert_array_equal(layout.outputs_of_rows(rows), outputs)
    inputs = normal(1, *layout.inputs).astype(np.float32)
    rows = layout.rows_of_inputs(jnp.asarray(inputs), after=jnp.asarray(outputs))
    phases = np.prod(layout.geometry.strides, dtype=int)
    assert rows.shape == (phases * inputs.shape[-1], layout.reach + layout.length)
    # Inputs that no kernel ever sees are not in the rows.
    seen = layout.inputs_of_rows(layout.rows_of_inputs(jnp.ones_like(inputs), after=rows))
    np.testing.assert_array_equal(layout.inputs_of_rows(rows), np.where(seen, inputs, 0))
    assert seen.any() and set(np.unique(seen)) <= {0, 1}


@pytest.mark.parametrize("case", CASES)
def test_every_weight_sees_whole_pieces_of_numbers_that_are_there(case):
    layout = layout_of(case)
    assert layout.length % PIECE == 0 and layout.length >= layout.positions - layout.reach


@pytest.mark.parametrize(
    ("batch", "length"),
    [(1, 64), (64, 64), (65, 128), (128, 128), (256, 256), (2048, 2048), (4095, 4096), (4096, 4160)],
)
def test_rows_are_as_long_as_their_positions_and_long_ones_no_power_of_two_apart(batch, length):
    layout = Layout(Geometry((3, 4)), (batch, 3))
    assert layout.length == length
    assert layout.is_short == (batch <= 256)


def test_rows_without_outputs():
    layout = Layout(Geometry((3, 3, 4, 6), (1, 1), ((0, 0), (0, 0))), (1, 1, 4, 4))
    assert layout.length == PIECE


def test_rows_are_added_from_where_they_are_taken_to_where_they_are_put():
    source = np.arange(12.0, dtype=np.float32).reshape(2, 6)
    taken, put = Places(jnp.array([0, 1, 1]), jnp.array([0, 1, 2])), Places(jnp.array([2, 0, 2]), jnp.array([0, 0, 1]))
    expected = np.zeros((3, 5), np.float32)
    for value, (row, start), (to, at) in zip((2, 3, -1), zip(*taken, strict=True), zip(*put, strict=True), strict=True):
        expected[to, at : at + 4] += value * source[row, start : start + 4]
    values = jnp.array([2.0, 3.0, -1.0])
    np.testing.assert_array_equal(add_rows((3, 5), 4, values, jnp.asarray(source), taken, put), expected)


@pytest.mark.parametrize("length", [PIECE, 3 * PIECE, rows_module.SHORT_ROW, rows_module.SHORT_ROW + PIECE])
def test_rows_of_every_length_are_added(length):
    source, values = normal(0, 3, length + 5), normal(1, 4)
    taken = Places(jnp.array([0, 2, 2, 1]), jnp.array([0, 5, 1, 3]))
    put = Places(jnp.array([1, 0, 1, 1]), jnp.array([0, 2, 1, 0]))
    expected = np.zeros((2, length + 2))
    for value, row, start, to, at in zip(values, *taken, *put, strict=True):
        expected[to, at : at + length] += value * source[row, start : start + length]
    found = add_rows((2, length + 2), length, jnp.asarray(values), jnp.asarray(source), taken, put)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("length", [PIECE, 3 * PIECE, rows_module.SHORT_ROW, rows_module.SHORT_ROW + PIECE])
@pytest.mark.parametrize("nnz", [0, 1, 2, 7, 20])
def test_inner_products_of_rows_of_every_length(nnz, length):
    rng = np.random.default_rng(0)
    one, other = normal(0, 3, 2 * length), normal(1, 2, length)
    in_one = Places(*(jnp.asarray(rng.integers(0, high, nnz)) for high in (3, length)))
    in_other = Places(jnp.asarray(rng.integers(0, 2, nnz)), jnp.zeros(nnz, int))
    expected = [one[row, at : at + length] @ other[to] for row, at, to in zip(*in_one, in_other.row, strict=True)]
    found = inner_rows(length, jnp.asarray(one), jnp.asarray(other), in_one, in_other)
    assert found.shape == (nnz,)
    np.testing.assert_allclose(found, np.array(expected), rtol=1e-4, atol=1e-5)


def test_inner_products_of_rows():
    one, other = normal(0, 3, 2 * PIECE).astype(np.float32), normal(1, 2, PIECE + 1).astype(np.float32)
    in_one, in_other = Places(jnp.array([2, 0]), jnp.array([5, 0])), Places(jnp.array([1, 1]), jnp.array([0, 1]))
    expected = [one[2, 5 : 5 + PIECE] @ other[1, :PIECE], one[0, :PIECE] @ other[1, 1:]]
    found = inner_rows(PIECE, jnp.asarray(one), jnp.asarray(other), in_one, in_other)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
