"""Runs that end at a chosen write, as SIGKILL would end them, and what is left of them."""

import shutil

import pytest

from dctps_jax.runs.checkpoint import Checkpoints
from dctps_jax.runs.metrics import MetricsLog
from dctps_jax.training import train_seed
from tests.small_runs import small_run


class Kill(BaseException):
    """Stands for SIGKILL: nothing between its raising and the test may catch it."""


def kill_at(patch, moment):
    """Raise `Kill` at the `moment`-th of the events of a run: before and after each write to its directory."""
    count = 0

    def event():
        nonlocal count
        count += 1
        if count == moment:
            raise Kill

    def watched(function):
        def call(*args, **kwargs):
            event()
            value = function(*args, **kwargs)
            event()
            return value

        return call

    patch.setattr(Checkpoints, "save", watched(Checkpoints.save))
    patch.setattr(MetricsLog, "append", watched(MetricsLog.append))
    patch.setattr(train_seed, "write_results", watched(train_seed.write_results))


def run_through_kills(workdir, moments, **overrides):
    """Start once for each of `moments`, killed there, and once more to the end."""
    for moment in moments:
        run_until_killed(workdir, moment, **overrides)
    small_run(workdir, **overrides)


def run_until_killed(workdir, moment, **overrides):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Kill):
        kill_at(patch, moment)
        small_run(workdir, **overrides)


def copy_unfinished(plain, workdir):
    shutil.copytree(plain, workdir)
    (workdir / "results.json").unlink()
    return workdir


def flip_content(workdir, step, kind="latest"):
    path = workdir / "checkpoints" / kind / str(step) / "state" / "content.zip"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
