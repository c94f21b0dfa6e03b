"""Runs in half precision: what is stored in float32, and which type a run computes in from start to end."""

import json
import math

import numpy as np
import pytest

from dctps_jax import export
from dctps_jax.cli import predict
from dctps_jax.errors import UserError
from dctps_jax.export import describe_exported
from dctps_jax.reports.report import write_report
from tests.commands import call
from tests.killed_runs import run_until_killed
from tests.small_runs import arrays, assert_same_end, results, rows, small_run

pytestmark = pytest.mark.usefixtures("small")


def recorded(workdir):
    """The type in config.json and in results.json."""
    config = json.loads((workdir / "config.json").read_text())
    return config["model"]["dtype"], results(workdir)["dtype"]


@pytest.fixture(scope="module")
def half(small, tmp_path_factory):
    """The directory of an undisturbed run in bfloat16."""
    workdir = tmp_path_factory.mktemp("half")
    small_run(workdir, model__dtype="bfloat16", optimizer__ema_decay=0.9, checkpoint_every_steps=2)
    return workdir


def test_auto_is_float32_on_a_cpu(plain):
    assert recorded(plain) == ("float32", "float32")


def test_everything_that_is_stored_is_float32(half, plain):
    assert recorded(half) == ("bfloat16", "bfloat16")
    kinds = {name.split("/")[1] for name in arrays(half)}
    assert {"params", "opt_state", "averages"} <= kinds and "sums/loss" in arrays(half)
    floats = {name: array.dtype for name, array in arrays(half).items() if array.dtype.kind not in "biu"}
    assert set(floats.values()) == {np.dtype(np.float32)}, floats
    # The computation is not: each loss is near that of float32, and none is the same.
    for row, other in zip(rows(half), rows(plain), strict=True):
        assert row["train_loss"] != other["train_loss"]
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=0.05)


def test_a_run_that_goes_on_keeps_its_type(half, tmp_path, capsys):
    options = {"optimizer__ema_decay": 0.9, "checkpoint_every_steps": 2}
    run_until_killed(tmp_path, 2, model__dtype="bfloat16", **options)
    small_run(tmp_path, **options)  # "auto", which is float32 on this machine
    assert "going on in bfloat16, as the run began; a new run would compute in float32 here" in capsys.readouterr().out
    assert_same_end(tmp_path, half)
    with pytest.raises(UserError, match=r"model\.dtype \('bfloat16' there, 'float32' now\)"):
        small_run(tmp_path, model__dtype="float32", **options)


def test_seeds_share_a_type(tmp_path):
    small_run(tmp_path, model__dtype="float16", num_seeds=2, num_epochs=1)
    for folder in (tmp_path, tmp_path / "seed_0", tmp_path / "seed_1"):
        assert recorded(folder) == ("float16", "float16")
    assert all(math.isfinite(row["train_loss"]) for row in rows(tmp_path / "seed_0"))
    small_run(tmp_path, num_seeds=2, num_epochs=1)  # it is finished


def test_a_type_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"must be one of: auto, float32, bfloat16, float16$"):
        small_run(tmp_path, model__dtype="float64")


def test_exports_predictions_and_reports_name_the_type(half, tmp_path):
    model = tmp_path / "model.safetensors"
    done = call(export.main, half, "--output", model)
    assert done.code == 0 and "computed in bfloat16" in done.out
    assert describe_exported(model).dtype == "bfloat16"
    report = next(file for file in write_report(half, tmp_path / "report") if file.name == "report.md")
    assert "Computed in bfloat16." in report.read_text()
    from PIL import Image

    Image.new("RGB", (32, 32)).save(tmp_path / "image.png")
    done = call(predict.main, model, tmp_path / "image.png")
    assert (done.code, done.err) == (0, "computed in bfloat16, as the network was trained\n")
    assert done.out.count("\n") == 1
