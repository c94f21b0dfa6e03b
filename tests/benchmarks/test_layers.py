"""Linear layers are timed by their sizes, and the figures are what fit_costs.py reads."""

import importlib
import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "layers.py"


@pytest.fixture
def time_layers(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    record = importlib.import_module("record")

    monkeypatch.setattr(record, "RESULTS", tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return run


def test_linear_layers_by_their_sizes(time_layers, tmp_path, capsys):
    time_layers(
        "linear:8x6,6x8", "0.1", "--batch_size", "4", "--repeats", "1", "--methods", "transform", "--save", "try"
    )
    first, second = json.loads((tmp_path / "try.json").read_text())["layers"]
    assert (first["kernel"], first["inputs"], first["nnz"], first["pads"]) == ([8, 6], [4, 8], 5, [])
    assert (second["kernel"], second["inputs"]) == ([6, 8], [4, 6])
    assert first["choice"] == "autodiff" and set(first["seconds"]) == {"dense layer", "autodiff", "transform"}
    assert set(first["dense_layer_wall"]) == set(first["chosen_wall"]) == {"forward", "inputs", "trained", "all"}
    assert "8×6, autodiff: forward" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["linear:", "linear:8", "linear:8x6,", "linear:8x0", "linear:axb"])
def test_other_sizes_are_refused(time_layers, name, capsys):
    with pytest.raises(SystemExit):
        time_layers(name, "0.1")
    assert f"network is {name!r}; linear layers are written linear:INxOUT,INxOUT" in capsys.readouterr().err
