"""Programs compiled for a TPU that is not there: the data set is not copied, and little is exchanged."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tpu.py"
IMAGES = 50_000
DATA_BYTES = IMAGES * 32 * 32 * 3
# Chips, dtype, further options, cases. A program takes the compiler 20 s: these three together hold each setting.
COMMANDS = {
    "one chip": ("1", "bfloat16", [], ["lenet:none:1"]),
    "four chips": ("4", "float32", [], ["small_resnet:dct:0.05"]),
    "rigl": ("4", "bfloat16", ["--sparse_training", "rigl"], ["lenet:dct:0.05"]),
}
MAIN = """
import sys, runpy
from dctps_jax import models
from tests.small_networks import FAMILIES
models.MODELS.update(FAMILIES)
script = sys.argv[1]
sys.argv[:] = sys.argv[1:]
sys.path.insert(0, script.rpartition("/")[0])
import record, pathlib
record.RESULTS = pathlib.Path(sys.argv.pop())
runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture(scope="module", params=list(COMMANDS))
def cases(request, tmp_path_factory):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install -e '.[tpu]'")
    folder = tmp_path_factory.mktemp("results")
    chips, dtype, options, names = COMMANDS[request.param]
    command = [sys.executable, "-c", MAIN, str(SCRIPT), *names, "--chips", chips, "--dtype", dtype, *options]
    command += ["--images", str(IMAGES), "--save", "small", str(folder)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_FLAGS", "JAX_"))}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=SCRIPT.parents[1])
    assert result.returncode == 0, result.stderr
    return json.loads((folder / "tpu_small.json").read_text())["cases"]


def test_the_data_set_lies_in_memory_once_and_is_not_copied(cases):
    for case in cases:
        assert DATA_BYTES < case["hbm_arguments"] < 1.5 * DATA_BYTES
        assert case["hbm_temporaries"] < DATA_BYTES / 4
        assert case["largest_result_bytes"] < DATA_BYTES / 4


def test_every_group_and_the_largest_operations_are_named(cases):
    for case in cases:
        assert case["megacycles"] == pytest.approx(sum(group["megacycles"] for group in case["groups"].values()))
        assert {"data and augmentation", "convolutions forward", "convolutions to kernels"} <= set(case["groups"])
        assert len(case["largest"]) == 10 and any("dctps_jax/" in op["place"] for op in case["largest"])


def test_chips_exchange_the_gradients_of_trained_weights_only(cases):
    for case in cases:
        if case["chips"] == 1:
            assert case["collective_bytes"] == []
        elif case["sparse_training"] == "static":
            assert 0 < sum(case["collective_bytes"]) < 4 * case["parameter_bytes"]
