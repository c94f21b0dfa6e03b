"""Activations as rows: what lies where, and back again."""

import jax.numpy as jnp
import numpy as np
import pytest

from dctps_jax.ops import rows as rows_module
from dctps_jax.ops.rows import SUMS, Layout, Places, add_rows, inner_rows
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
def test_every_weight_sees_whole_sums_of_numbers_that_are_there(case):
    layout = layout_of(case)
    assert layout.length % SUMS == 0 and layout.length >= layout.positions - layout.reach


def test_rows_are_added_from_where_they_are_taken_to_where_they_are_put():
    source = np.arange(12.0, dtype=np.float32).reshape(2, 6)
    taken, put = Places(jnp.array([0, 1, 1]), jnp.array([0, 1, 2])), Places(jnp.array([2, 0, 2]), jnp.array([0, 0, 1]))
    expected = np.zeros((3, 5), np.float32)
    for value, (row, start), (to, at) in zip((2, 3, -1), zip(*taken, strict=True), zip(*put, strict=True), strict=True):
        expected[to, at : at + 4] += value * source[row, start : start + 4]
    values = jnp.array([2.0, 3.0, -1.0])
    np.testing.assert_array_equal(add_rows((3, 5), 4, values, jnp.asarray(source), taken, put), expected)


def test_inner_products_of_rows():
    one, other = normal(0, 3, 2 * SUMS).astype(np.float32), normal(1, 2, SUMS + 1).astype(np.float32)
    in_one, in_other = Places(jnp.array([2, 0]), jnp.array([5, 0])), Places(jnp.array([1, 1]), jnp.array([0, 1]))
    expected = [one[2, 5 : 5 + SUMS] @ other[1, :SUMS], one[0, :SUMS] @ other[1, 1:]]
    found = inner_rows(SUMS, jnp.asarray(one), jnp.asarray(other), in_one, in_other)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
