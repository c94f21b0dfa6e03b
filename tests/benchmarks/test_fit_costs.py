"""Costs come back out of times that were made with them, and files that do not fit together are refused."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from dctps_jax.offsets.dct import DCT
from dctps_jax.ops.costs import FILES, Costs, read_costs
from dctps_jax.ops.geometry import Geometry
from dctps_jax.ops.methods import METHODS, possible_methods
from dctps_jax.ops.work import Work

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fit_costs.py"
TRUE = read_costs(FILES["cpu"])._replace(product=0.03, move=0.9, pair=5.0, inner=0.1)
LAYERS = [
    (kernel, stride, nnz)
    for kernel in ((1, 1, 8, 16), (3, 3, 8, 16), (3, 3, 64, 32))
    for stride in (1, 2)
    for nnz in (5, 50, 500)
]


def made_up_file(path, costs=TRUE, **changes):
    """A result of layers.py whose times are exactly what ``costs`` predict."""
    layers = []
    for kernel, stride, nnz in LAYERS:
        pad = kernel[0] // 2
        pads = ((pad, pad), (pad, pad))
        work = Work(Geometry(kernel, (stride, stride), pads), (8, 16, 16, kernel[2]), nnz, DCT)
        seconds = {name: 1e-9 * METHODS[name].cost(work, costs) for name in possible_methods(work)}
        layers.append(
            {
                "kernel": list(kernel),
                "stride": stride,
                "pads": pads,
                "inputs": list(work.inputs),
                "nnz": nnz,
                "seconds": {"dense layer": 1.0} | seconds,
            }
        )
    environment = {"python": "3.11.7", "jax": "0.10.2", "device": "1 × cpu cpu"}
    result = {"command": {"offset": "dct"}, "date": "2026-01-02", "machine": "2 × Abacus", "environment": environment}
    path.write_text(json.dumps(result | {"layers": layers} | changes))
    return path


@pytest.fixture
def fit(monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return run


def test_the_costs_that_made_the_times_are_found(tmp_path, fit, capsys):
    output = tmp_path / "costs.json"
    fit(made_up_file(tmp_path / "layers.json"), "--output", output)
    file = json.loads(output.read_text())
    # Nothing here is depthwise; and the costs that are set by hand are those of the start.
    for name, true in TRUE._asdict().items():
        assert file["nanoseconds"][name] == pytest.approx(true, rel=1e-6), name
    assert (file["platform"], file["machine"], file["date"]) == ("cpu", "2 × Abacus", "2026-01-02")
    assert file["versions"] == {"python": "3.11.7", "jax": "0.10.2"}
    assert file["residuals"]["files"] == ["layers.json"] and file["residuals"]["regret"] == 0
    errors = file["residuals"]["relative_errors"]
    assert set(errors) == {"all", *METHODS} and all(error["root_mean_square"] == 0 for error in errors.values())
    assert read_costs(output) == Costs(**file["nanoseconds"])
    printed = capsys.readouterr().out
    assert "depthwise                    0.139       0.139  not determined" in printed
    assert "loop                           100         100  kept" in printed


def test_only_some_costs_are_fitted(tmp_path, fit):
    output = tmp_path / "costs.json"
    measured = made_up_file(tmp_path / "layers.json", read_costs(FILES["cpu"])._replace(move=0.9))
    fit(measured, "--fit", "move", "--output", output)
    assert json.loads(output.read_text())["nanoseconds"] == pytest.approx(
        read_costs(FILES["cpu"])._replace(move=0.9)._asdict()
    )


def test_residuals_of_costs_as_they_are(tmp_path, fit):
    start, output = tmp_path / "start.json", tmp_path / "kept.json"
    doubled = Costs(*(2 * cost for cost in TRUE))
    start.write_text(json.dumps({"note": "doubled", "by_hand": [], "nanoseconds": doubled._asdict()}))
    fit(made_up_file(tmp_path / "layers.json"), "--start", start, "--keep", "--output", output)
    file = json.loads(output.read_text())
    assert file["note"] == "doubled" and Costs(**file["nanoseconds"]) == doubled
    assert file["residuals"]["relative_errors"]["all"]["median"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{}", "holds no result of benchmarks/layers.py"),
        ("[1", "holds no result of benchmarks/layers.py"),
        ({"machine": "4 × Abacus"}, "has the machine 4 × Abacus, the files before it 2 × Abacus"),
        ({"environment": {"device": "1 × abacus"}}, "holds no result"),
        ({"command": {"offset": "dct", "dtype": "bfloat16"}}, "holds no result"),  # of a CPU, for which none are kept
        ({"layers": [{"kernel": [2, 3], "stride": 1, "pads": [], "inputs": [4, 2], "nnz": 1, "seconds": {"plain": 1}}]},
         "the files hold times of plain; the methods are: autodiff, "),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_refused(tmp_path, fit, content, message):
    second = tmp_path / "second.json"
    if isinstance(content, dict):
        made_up_file(second, **content)
    elif content:
        second.write_text(content)
    with pytest.raises(SystemExit) as stopped:
        fit(made_up_file(tmp_path / "layers.json"), second)
    assert str(stopped.value).startswith("fit_costs: ") and message in str(stopped.value)


def test_a_start_that_is_no_file_of_costs_is_refused(tmp_path, fit):
    measured = made_up_file(tmp_path / "layers.json")
    with pytest.raises(SystemExit, match=r"layers\.json is no file of costs"):
        fit(measured, "--start", measured)
