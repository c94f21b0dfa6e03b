"""What a run says of how far it is."""

import re
import time

import jax.numpy as jnp
import pytest

from dctps_jax.training import progress
from dctps_jax.training.progress import Progress, duration
from dctps_jax.training.step import zero_sums
from tests.small_runs import small_run


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (89, "89 s"),
        (90, "2 min"),
        (3600, "60 min"),
        (7200, "2.0 h"),
        (86400, "24 h"),
        (200_000, "2.3 days"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_pipe_has_a_line_every_few_steps(small, tmp_path, capsys):
    small_run(tmp_path, log_every_steps=2)
    out = capsys.readouterr().out
    lines = re.findall(
        r"^epoch (\d)/2  step (\d)/5  loss (\d+\.\d{4})  [\d,]+ images/s  left: \d+ s, run \d+ s$", out, re.MULTILINE
    )
    assert [line[:2] for line in lines] == [("1", "2"), ("1", "4"), ("2", "1"), ("2", "3")]
    # The sum of both losses so far, after four of five steps, and after all.
    losses, means = [float(line[2]) for line in lines], re.findall(r"train loss (\d+\.\d{4})", out)
    assert all(0 < 5 * float(mean) - 4 * loss < loss for loss, mean in zip(losses[1:2], means, strict=False))


@pytest.mark.parametrize(("layers", "seconds", "said"), [(6, 0.1, False), (53, 0.0, False), (53, 0.1, True)])
def test_compiling_is_announced_where_it_takes_long(capsys, monkeypatch, layers, seconds, said):
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.02)
    with progress.compiling(layers):
        time.sleep(seconds)
    time.sleep(0.05)  # nothing comes afterwards
    assert capsys.readouterr().out == ("compiling … (usually about 1 minute the first time)\n" if said else "")


@pytest.mark.parametrize(
    ("method", "text"), [("epl", "building the network …"), ("snip", "choosing the weights by snip …")]
)
def test_what_takes_long_before_the_first_table_is_announced(small, tmp_path, capsys, monkeypatch, method, text):
    config = {"pruning__method": method, "num_epochs": 1}
    for seconds in (600.0, 0.0):
        monkeypatch.setattr(progress, "PATIENCE_SECONDS", seconds)
        small_run(tmp_path / str(seconds), **config)
        out, err = capsys.readouterr()
        before_table = out.partition("\nlayer ")[0].splitlines()[1:]
        images = "digits: 200 training and 50 test images of 10 classes, 32 x 32 pixels, RGB"
        assert err == "" and set(before_table) <= {"reading the images …", images, text}
        assert before_table.count(text) == (seconds == 0)


SUMS = zero_sums()._replace(loss=jnp.float32(12), images=jnp.int32(320))


def test_time_left_counts_the_steps_that_are_finished_and_what_follows_an_epoch(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    shown = Progress(num_epochs=3, steps_per_epoch=10, batch_size=32, log_every_steps=5)
    with shown.epoch(0, 0):
        now[0] = 10.0
        shown.finished(5, SUMS)
        now[0] = 20.0
        shown.finished(10, SUMS)
        now[0] = 50.0  # validation
    with shown.epoch(1, 10):
        now[0] = 60.0
        shown.finished(15, SUMS)
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/3  step 5/10  loss 1.2000  16 images/s  left: 10 s, run 50 s",
        # Two seconds a step for 15 steps, and twice 30 s after the steps of an epoch.
        "epoch 2/3  step 5/10  loss 1.2000  16 images/s  left: 10 s, run 2 min",
    ]


def test_a_terminal_has_a_bar_of_finished_steps(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    small_run(tmp_path, log_every_steps=1, num_epochs=1)
    captured = capsys.readouterr()
    assert re.search(r"epoch 1/1 \|.*\| 4/5, loss \d+\.\d{4}, [\d,]+ images/s, left: \d+ s, run \d+ s", captured.err)
    assert "5/5, validating" in captured.err and "testing" in captured.err
    assert "step 4/5" not in captured.out
