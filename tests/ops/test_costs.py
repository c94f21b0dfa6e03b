"""The files of costs say where their numbers come from."""

import datetime
import json

import pytest

from dctps_jax.ops.costs import FILES, Costs, read_costs


@pytest.mark.parametrize("platform", FILES)
def test_a_file_holds_its_costs_and_their_origin(platform):
    file = json.loads(FILES[platform].read_text())
    assert file["platform"] == platform and file["machine"] and file["note"] and "versions" in file
    datetime.date.fromisoformat(file["date"])
    assert "least_gain" in file["by_hand"] and set(file["by_hand"]) < set(Costs._fields)
    residuals = file["residuals"]
    assert residuals["files"] and residuals["versions"]["jax"] and residuals["relative_errors"]["all"]["samples"] > 50
    costs = read_costs(FILES[platform])
    assert costs == Costs(**file["nanoseconds"]) and min(costs) >= 0
