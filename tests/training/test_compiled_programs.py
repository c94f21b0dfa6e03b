"""A second start compiles nothing; where compiled programs lie is the user's choice."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]

COUNT = """
import jax, runpy, sys
counts = {"cache_hits": 0, "cache_misses": 0}
def count(event, **_):
    name = event.rpartition("/")[2]
    if name in counts:
        counts[name] += 1
jax.monitoring.register_event_listener(count)
sys.argv[0] = "train.py"
try:
    runpy.run_path("train.py", run_name="__main__")
finally:
    print("counted", counts["cache_hits"], counts["cache_misses"], file=sys.stderr)
"""


def counted(tmp_path, workdir, *arguments, **environment):
    """Train in a process of its own; return the numbers of programs that were found and that were compiled."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_COMP", "JAX_PERS"))}
    command = [sys.executable, "-c", COUNT, "--config=configs/lenet_digits.py", f"--workdir={tmp_path / workdir}"]
    done = subprocess.run(
        [*command, "--config.num_epochs=1", *arguments],
        cwd=REPO,
        env=kept | {"XDG_CACHE_HOME": str(tmp_path / "cache")} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    hits, misses = done.stderr.split()[-2:]
    return int(hits), int(misses)


def test_a_second_start_compiles_nothing(tmp_path):
    hits, misses = counted(tmp_path, "first")
    assert misses > 3
    assert counted(tmp_path, "second") == (hits + misses, 0)
    for entry in (tmp_path / "cache" / "dctps_jax" / "compiled").glob("*/*-cache"):
        entry.write_bytes(entry.read_bytes()[:100])
    counted(tmp_path, "third")


def test_another_seed_is_another_run_of_the_same_programs(tmp_path):
    options = ["--config.data.name=tests.small_runs:normalized_digits"]
    hits, misses = counted(tmp_path, "first", *options)
    assert misses > 3
    assert counted(tmp_path, "second", *options, "--config.seed=1") == (hits + misses, 0)


@pytest.mark.parametrize("off", [["--config.execution.keep_compiled=False"], []], ids=["field", "environment"])
def test_nothing_is_kept_where_it_is_switched_off(tmp_path, off):
    environment = {} if off else {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    assert counted(tmp_path, "run", *off, **environment) == (0, 0)
    assert not (tmp_path / "cache" / "dctps_jax" / "compiled").exists()
