"""Layers compiled for a TPU that is not there: the figures are what fit_costs.py reads."""

import importlib.util
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MAIN = """
import sys, runpy, pathlib
script, results = sys.argv.pop(1), sys.argv.pop()
sys.path.insert(0, script.rpartition("/")[0])
import record
record.RESULTS = pathlib.Path(results)
runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_estimates_are_read_as_those_of_a_tpu_in_half_precision(tmp_path):
    command = [sys.executable, "-c", MAIN, str(BENCHMARKS / "tpu_layers.py"), "linear:256x128", "0.01"]
    command += ["--batch_size", "64", "--methods", "autodiff", "on_support", "--save", "small", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_FLAGS", "JAX_"))}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=BENCHMARKS.parent)
    assert result.returncode == 0, result.stderr
    assert "| 256×128 | 1 | 64×256 | 328 |" in result.stdout
    samples, origin = runpy.run_path(str(BENCHMARKS / "fit_costs.py"))["read_results"]([tmp_path / "small.json"])
    assert origin["platform"] == "tpu, half precision" and "by its compiler's estimates" in origin["machine"]
    assert {sample.method for sample in samples} == {"autodiff", "on_support"}
    assert all(0 < sample.seconds < 1e-3 and sample.work.nnz == 328 for sample in samples)
