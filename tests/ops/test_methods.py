"""The registry of methods."""

from pathlib import Path

import pytest

import dctps_jax.ops
from dctps_jax.offsets import OFFSETS
from dctps_jax.ops.cost_model import COSTS
from dctps_jax.ops.geometry import Geometry
from dctps_jax.ops.methods import METHODS
from dctps_jax.ops.work import Work

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
    for work in WORKS:
        assert METHODS[name].cost(work, doubled) == pytest.approx(2 * METHODS[name].cost(work, costs), rel=1e-12)
        assert METHODS[name].cost(work, type(costs)(*(0.0 for _ in costs))) == 0


def test_the_readme_has_a_line_for_each_method():
    (folder,) = dctps_jax.ops.__path__
    lines = (Path(folder) / "README.md").read_text().splitlines()
    assert [line.split("`")[1] for line in lines if line.startswith("| `") and line.split("`")[1] in METHODS] == [
        *METHODS
    ]
