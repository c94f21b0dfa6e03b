"""metrics.jsonl, its best row, and the mean over seeds."""

import contextlib
import json
import math
import sqlite3
import statistics
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dctps_jax.command import sentence
from dctps_jax.runs.loggers import open_loggers
from dctps_jax.runs.metrics import MetricsLog, describe, mean_and_std, read_rows
from tests.small_runs import small_config

ROW = {
    "epoch": 3, "step": 30, "train_loss": 1.25, "train_accuracy": 0.5, "val_loss": 2.5, "val_accuracy": 0.4375,
    "learning_rate": 1e-3, "images_per_second": 1234.5,
}  # fmt: skip


def row(step, val_accuracy=0.5):
    return {**ROW, "epoch": step // 10, "step": step, "val_accuracy": val_accuracy}


def filled(folder, accuracies):
    log = MetricsLog(folder, 0)
    for number, accuracy in enumerate(accuracies):
        log.append(row(10 * (number + 1), accuracy))
    log.close()
    return log


def test_each_row_is_on_disk_at_once(tmp_path):
    log = MetricsLog(tmp_path, 0)
    for step in (10, 20):
        log.append(row(step))
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1]) == row(step) and len(lines) == step // 10


@pytest.mark.parametrize(("step", "left"), [(0, 0), (9, 0), (10, 1), (25, 2), (30, 3), (99, 3)])
def test_rows_of_later_steps_are_dropped(tmp_path, step, left):
    filled(tmp_path, [0.1, 0.3, 0.2])
    log = MetricsLog(tmp_path, step)
    assert [kept["step"] for kept in log.rows] == [10, 20, 30][:left]
    assert read_rows(tmp_path / "metrics.jsonl") == log.rows


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_file_cut_anywhere_keeps_its_whole_rows(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("cut")
    filled(folder, [0.1, 0.2, 0.3])
    path = folder / "metrics.jsonl"
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    log = MetricsLog(folder, 1000)
    assert log.rows == [row(10, 0.1), row(20, 0.2), row(30, 0.3)][: whole[: cut + 1].count(b"\n")]
    log.append(row(10 * (len(log.rows) + 1)))
    assert read_rows(path) == log.rows
    assert path.read_bytes().count(b"\n") == len(log.rows)


def test_best_row_is_the_first_of_the_highest(tmp_path):
    assert MetricsLog(tmp_path, 0).best_row() is None
    assert filled(tmp_path, [0.1, 0.3, 0.2, 0.3]).best_row()["step"] == 20


def log_of(folder, step=0, **fields):
    """Log a row with the loggers of a config."""
    config = small_config(**fields)
    log = MetricsLog(folder, step, open_loggers=lambda: open_loggers(folder, step, config))
    log.append(row(step + 10))
    log.close()


def test_wandb_stays_offline_in_the_directory(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    for step in (0, 10):  # a run that goes on
        log_of(tmp_path, step, wandb="offline")
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert runs and len({run.name.rpartition("-")[2] for run in runs}) == 1
    content = b"".join(file.read_bytes() for run in runs for file in run.glob("*.wandb"))
    for name in ROW.keys() - {"epoch", "step"}:
        assert name.encode() in content


def test_trackio_stays_in_the_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    log_of(tmp_path, trackio=True)
    (database,) = (tmp_path / "trackio").glob("*.db")
    with contextlib.closing(sqlite3.connect(database)) as connection:
        (metrics,) = connection.execute("select metrics from metrics").fetchall()
    assert json.loads(metrics[0])["val_accuracy"] == row(10)["val_accuracy"]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_logger_that_is_not_installed_is_named(tmp_path, name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError) as caught:
        options: dict[str, Any] = {name: "offline" if name == "wandb" else True}
        log_of(tmp_path, **options)
    assert sentence(caught.value) == (f"{name} is not installed; pip install 'dctps_jax[{name}]'", 2)


def test_tensorboard_gets_every_number(tmp_path):
    pytest.importorskip("tensorboardX")
    log_of(tmp_path, tensorboard=True)
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    for name in ROW.keys() - {"epoch", "step"}:
        assert name.encode() in content


def test_screen_line_names_the_numbers():
    line = describe(ROW, 200)
    assert "\n" not in line
    for part in ("epoch   3/200", "1.2500", "2.5000", "43.75%", "0.001", "1,23"):
        assert part in line


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_mean_and_std(values):
    mean, std = mean_and_std(values)
    assert math.isclose(mean, statistics.fmean(values), rel_tol=1e-12, abs_tol=1e-12)
    expected = statistics.stdev(values) if len(values) > 1 else 0.0
    assert math.isclose(std, expected, rel_tol=1e-9, abs_tol=1e-9)
