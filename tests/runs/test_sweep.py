"""Grids become runs, and processes do them: each once, failures told, signals passed on."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from configs import lenet_digits
from configs.sweeps import density, methods
from dctps_jax import UserError
from dctps_jax.cli import sweep
from dctps_jax.runs.grid import in_existing_folders, plan_runs
from dctps_jax.runs.sweep import Sweep

# Stands for train.py: takes the seed's place in the sweep, and fails or waits where it is told to.
CHILD = """
import fcntl, json, pathlib, signal, sys, time
options = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:] if "=" in argument)
folder = pathlib.Path(sys.argv[sys.argv.index("--workdir") + 1])
seed = int(options["config.seed"])
lock = (folder / ".lock").open("a")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    sys.exit(75)
with (folder / "calls").open("a") as calls:
    calls.write("called\\n")
def stop(number, frame):
    (folder / "saved").touch()
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop)
import os
(folder / "processors").write_text(str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0))
(folder / "ready").touch()
for _ in range(2 * (seed == 4)):
    print("warning: seed 4 has empty layers", file=sys.stderr)
if "wait" in sys.argv:
    time.sleep(60)
if seed == 2 and not (folder / "mended").exists():
    (folder / "mended").touch()
    sys.exit("it is broken")
results = {"test_accuracy_final": 0.5, "test_accuracy_best": 0.5, "best_epoch": 1, "best_val_accuracy": 0.5}
results |= {"density": 0.1, "density_asked": 0.1, "trainable_parameters": 9}
(folder / "results.json").write_text(json.dumps(results))
"""


def runs_of(grids):
    return plan_runs(lenet_digits.get_config(), grids)


@pytest.fixture
def command(tmp_path):
    file = tmp_path / "child.py"
    file.write_text(textwrap.dedent(CHILD))
    return [sys.executable, str(file)]


def record_configs(runs, folder):
    """Do what the child does not: bind the runs' directories to their configs, with the type that they compute in."""
    for run in runs:
        (folder / run.name).mkdir(parents=True, exist_ok=True)
        config = run.config | {"model": run.config["model"] | {"dtype": "float32"}}
        (folder / run.name / "config.json").write_text(json.dumps(config))


def calls(folder):
    """How often a child worked in a run's directory."""
    file = folder / "calls"
    return file.read_text().count("called") if file.exists() else 0


def test_a_grid_is_all_combinations_and_a_list_their_union():
    first = {"pruning.density": (0.1, 0.01), "model.offset": ("dct", None)}
    runs = runs_of([first, {"pruning.density": (0.1,), "model.offset": ("dct",)}, {"num_epochs": (3,)}])
    assert [run.name for run in runs] == [
        "model.offset=dct,pruning.density=0.1",
        "model.offset=None,pruning.density=0.1",
        "model.offset=dct,pruning.density=0.01",
        "model.offset=None,pruning.density=0.01",
        "num_epochs=3",
    ]
    assert runs[1].options() == ["--config.pruning.density=0.1", "--config.model.offset=None"]
    assert runs[-1].epochs == 3


def test_values_that_mean_the_same_are_one_run():
    runs = runs_of({"pruning.density": (1, 1.0), "model.offset": ("none", None)})
    assert [run.name for run in runs] == ["model.offset=none,pruning.density=1"]


def test_config_without_a_field_is_refused():
    config = lenet_digits.get_config()
    del config.model
    with pytest.raises(UserError, match=r"the config has no field config\.model\.name"):
        plan_runs(config, {"model.name": ("lenet", "vgg11")})


def test_what_is_set_for_all_runs():
    given = ["sweep.py", "--config", "a.py", "--sweep=b.py", "--config.num_epochs", "3"]
    given += ["--noconfig.tensorboard", "--config.data.augment", "--jobs", "2"]
    kept = ["--config", "a.py", "--config.num_epochs", "3", "--noconfig.tensorboard", "--config.data.augment"]
    assert sweep.options_for_all(given) == kept
    negative = ["--config.model.alpha_init", "-0.5", "--config.seed=0"]
    assert sweep.options_for_all(["sweep.py", *negative]) == negative
    with pytest.raises(UserError, match="--flagfile is for train"):
        sweep.options_for_all(["sweep.py", "--flagfile=f"])


def test_references_of_a_config_follow_the_fields_of_a_run():
    config = lenet_digits.get_config()
    config.eval_batch_size = config.get_ref("batch_size")
    points = plan_runs(config, {"batch_size": (32, 128)})
    assert [point.config["eval_batch_size"] for point in points] == [32, 128]


def test_files_that_are_no_sweep(tmp_path):
    file = tmp_path / "sweep.py"
    for text, message in (
        ("get_swep = None", "has no function get_sweep"),
        ("def get_sweep(): return {}['a']", "cannot be used: KeyError: 'a'"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            sweep.load_sweep(file)


def test_the_sweeps_of_the_paper():
    assert len(runs_of(density.get_sweep())) == 36
    assert len(runs_of(methods.get_sweep())) == 48


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        ({}, "it must be grids"),
        (3, "must be grids"),
        ([3], "it must be grids"),
        ({"pruning.densty": (0.1,)}, r"did you mean 'pruning\.density'\?"),
        ({"pruning.density": 0.1}, "it must be a list of values"),
        ({"pruning.density": ()}, "it must be a list of values"),
        ({"pruning.method": "epl"}, "it must be a list of values"),
        ({"pruning.density": (0.1, 2.0)}, r"config.pruning.density is 2.0; it must be above 0"),
        ({"pruning.density": ("0.1",)}, "it must be a number"),
        ({"seed": (True,)}, "it must be a whole number"),
        ({"data.dir": ("a/b", "a:b")}, "two runs that would be called data.dir=a_b"),
    ],
)
def test_grids_that_cannot_be(grids, message):
    with pytest.raises(UserError, match=message):
        runs_of(grids)


def test_names_of_runs_can_be_read():
    layers = {"pruning.dense_layers": ((), ("conv1",), ("conv1", "fc"))}
    assert [run.name for run in runs_of(layers)] == [
        f"pruning.dense_layers={name}" for name in ("_", "conv1", "conv1-fc")
    ]
    # Where these names are equal, they are as they were.
    layers = {"pruning.dense_layers": (("fc",), ("fc*",), ("conv1",))}
    names = [run.name.removeprefix("pruning.dense_layers=") for run in runs_of(layers)]
    assert names == ["__fc___", "__fc____", "conv1"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_each_run_is_done_once_and_failures_again(tmp_path, command, jobs, capsys):
    runs, folder = runs_of({"seed": (0, 1, 2)}), tmp_path / "sweep"
    record_configs(runs, folder)
    first = Sweep(runs, command, folder, jobs)
    first.go()
    assert list(first.failed) == ["seed=2"] and "exit status 1: it is broken" in first.failed["seed=2"]
    assert "log.txt" in first.failed["seed=2"] and first.num_finished() == 2
    assert "3 runs, 0 of them finished" in capsys.readouterr().out
    if hasattr(os, "sched_getaffinity"):
        processors = len(os.sched_getaffinity(0))
        shares = {int((folder / run.name / "processors").read_text()) for run in runs}
        assert shares <= {-(-processors // jobs), max(1, processors // jobs)}

    again = Sweep(runs, command, folder, jobs)
    again.go()
    assert again.failed == {} and again.num_finished() == 3
    assert [calls(folder / f"seed={seed}") for seed in range(3)] == [1, 1, 2]
    printed = capsys.readouterr().out
    assert "3 runs, 2 of them finished" in printed and "[3/3] seed=2: test accuracy 50.00%" in printed


@pytest.mark.parametrize("finishes", [True, False])
def test_a_run_of_another_process_is_waited_for(tmp_path, command, finishes, capsys):
    runs, folder = runs_of({"seed": (3, 4)}), tmp_path / "sweep"
    record_configs(runs, folder)
    lock = (folder / "seed=3" / ".lock").open("a")
    fcntl.flock(lock, fcntl.LOCK_EX)

    def leave():
        while not (folder / "seed=4" / "results.json").exists():
            time.sleep(0.01)
        if finishes:
            shutil.copy(folder / "seed=4" / "results.json", folder / "seed=3")
        lock.close()

    threading.Thread(target=leave).start()
    done = Sweep(runs, command, folder)
    done.go()
    assert done.num_finished() == 2 and not done.failed
    assert calls(folder / "seed=3") == (0 if finishes else 1)
    printed = capsys.readouterr().out
    assert "[1/2] seed=4: " in printed and "[2/2] seed=3: " in printed
    # A warning stands once, below its run.
    assert printed.count("s\n  warning: seed 4 has empty layers\n[2/2]") == 1 == printed.count("seed 4")
    assert ("by another process" in printed) == finishes


def test_runs_of_another_config_are_refused(tmp_path, command):
    runs, folder = runs_of({"seed": (3,)}), tmp_path / "sweep"
    record_configs(runs, folder)
    Sweep(runs, command, folder).go()
    config = lenet_digits.get_config()
    config.batch_size = 50
    with pytest.raises(
        UserError, match=r"seed=3 belongs to a run with another config: batch_size \(64 there, 50 now\)"
    ):
        Sweep(plan_runs(config, {"seed": (3, 4)}), command, folder).go()
    assert calls(folder / "seed=3") == 1 and not (folder / "seed=4").exists()


def test_the_directory_of_a_run_is_none_for_a_sweep(tmp_path, command):
    runs = runs_of({"seed": (3,)})
    record_configs(runs, tmp_path)
    with pytest.raises(UserError, match="is the directory of a run; a sweep needs a directory of its own"):
        Sweep(runs, command, tmp_path / "seed=3").go()


def test_an_unfinished_run_of_another_config_is_refused_before_any_is_started(tmp_path, command):
    config, folder = lenet_digits.get_config(), tmp_path / "sweep"
    record_configs(runs_of({"seed": (4,)}), folder)
    config.batch_size = 50
    with pytest.raises(UserError, match="seed=4 belongs to a run with another config: batch_size"):
        Sweep(plan_runs(config, {"seed": (3, 4)}), command, folder).go()
    assert not (folder / "seed=3").exists() and calls(folder / "seed=4") == 0


def test_finished_runs_that_are_to_grow_are_no_longer_finished(tmp_path, command):
    runs, folder = runs_of({"seed": (3,)}), tmp_path / "sweep"
    record_configs(runs, folder)
    Sweep(runs, command, folder).go()
    grown = [run._replace(config=run.config | {"num_epochs": 50}) for run in runs]
    sweep = Sweep(grown, command, folder)
    assert sweep.num_finished() == 0
    sweep.go()
    assert calls(folder / "seed=3") == 2
    record_configs(grown, folder)
    assert sweep.num_finished() == 1


def test_finished_runs_of_a_network_of_the_users_own_are_checked_by_the_command(tmp_path, command, capsys):
    runs = runs_of({"seed": (1, 2)})
    record_configs(runs, tmp_path)
    Sweep(runs, command, tmp_path).go()  # the child fails for seed 2 at its first call
    Sweep(runs, command, tmp_path).go()
    (tmp_path / "seed=2" / "mended").unlink()
    for run in runs:
        run.config["model"]["name"] = "mine.networks:Net"
    record_configs(runs, tmp_path)
    capsys.readouterr()
    sweep = Sweep(runs, command, tmp_path)
    sweep.go()
    assert sweep.failed.keys() == {"seed=2"} and "it is broken" in sweep.failed["seed=2"]
    assert [calls(tmp_path / run.name) for run in runs] == [2, 3]
    out = capsys.readouterr().out
    assert "2 runs, 2 of them finished" in out and "[1/2] seed=1: " in out and out.endswith("finished before\n")


def test_a_sweep_with_more_values_or_fields_trains_what_is_missing(tmp_path, command):
    def train(grid):
        points = runs_of(grid)
        record_configs([point for point in points if point.name not in trained], folder)
        sweep = Sweep(points, command, folder)
        sweep.go()
        assert sweep.num_finished() == len(points)
        return {run.name: calls(folder / run.name) for run in sweep.points}

    folder, trained = tmp_path / "sweep", set()
    assert train({"seed": (3,)}) == {"seed=3": 1}
    trained.add("seed=3")
    assert train({"seed": (3, 4)}) == {"seed=3": 1, "seed=4": 1}
    trained |= {"seed=4", "batch_size=64,seed=3", "batch_size=64,seed=4"}
    # 64 is the value in the config.
    larger = {"batch_size": (64, 32), "seed": (3, 4)}
    assert train(larger) == {"seed=3": 1, "seed=4": 1, "batch_size=32,seed=3": 1, "batch_size=32,seed=4": 1}
    assert not (folder / "batch_size=64,seed=3").exists()


def test_a_field_that_a_resumed_run_may_change_makes_runs_of_their_own(tmp_path):
    (point,) = runs_of({"execution.method": ("autodiff",)})
    record_configs([point], tmp_path)
    more = runs_of({"execution.method": ("autodiff", "on_support"), "seed": (0,)})
    names = [run.name for run in in_existing_folders(more, tmp_path)]
    assert names == ["execution.method=autodiff", "execution.method=on_support,seed=0"]


def test_runs_of_a_sweep_with_more_fields_are_found_when_they_are_to_grow(tmp_path):
    record_configs(runs_of([{"seed": (0, 1)}, {"num_epochs": (5,)}]), tmp_path)
    config = lenet_digits.get_config()
    config.num_epochs = 50

    def names(grid):
        return [run.name for run in in_existing_folders(plan_runs(config, grid), tmp_path)]

    assert names({"batch_size": (64, 32), "seed": (0, 1)}) == [
        "seed=0", "seed=1", "batch_size=32,seed=0", "batch_size=32,seed=1"
    ]  # fmt: skip
    # These are points of their own: a directory that is named for 5 epochs keeps them, and so do 30 epochs.
    assert names({"batch_size": (64,), "num_epochs": (5, 6)}) == ["num_epochs=5", "batch_size=64,num_epochs=6"]


def test_a_directory_that_is_taken_at_the_last_moment_is_tried_again(tmp_path, command, monkeypatch):
    runs, folder = runs_of({"seed": (3,)}), tmp_path / "sweep"
    record_configs(runs, folder)
    lock = (folder / "seed=3" / ".lock").open("a")
    fcntl.flock(lock, fcntl.LOCK_EX)
    asked = iter([False, True])

    def in_use(run_folder):
        taken = next(asked, False)
        if taken:
            lock.close()
        return taken

    monkeypatch.setattr("dctps_jax.runs.sweep.is_in_use", in_use)
    done = Sweep(runs, command, folder)
    done.go()
    assert done.num_finished() == 1 and not done.failed and calls(folder / "seed=3") == 1


def test_a_signal_is_passed_on(tmp_path, command):
    runs, folder = runs_of({"seed": (0, 1, 3)}), tmp_path / "sweep"
    done = Sweep(runs, [*command, "wait"], folder, jobs=2)

    def stop():
        while not all((folder / f"seed={seed}" / "ready").exists() for seed in (0, 1)):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    done.go()
    assert done.signal_number == signal.SIGTERM and not done.failed and not done.working
    assert sorted(child.name for child in folder.iterdir() if (child / "saved").exists()) == ["seed=0", "seed=1"]
    assert not (folder / "seed=3").exists()


def test_a_signal_that_comes_while_a_process_is_started_is_passed_on(tmp_path, command, monkeypatch):
    done = Sweep(runs_of({"seed": (0,)}), [*command, "wait"], tmp_path)
    popen = subprocess.Popen

    def start(*arguments, **options):
        process = popen(*arguments, **options)
        while not (tmp_path / "seed=0" / "ready").exists():
            time.sleep(0.01)
        done._stop(signal.SIGTERM, None)
        return process

    monkeypatch.setattr(subprocess, "Popen", start)
    done.go()
    assert done.signal_number == signal.SIGTERM and (tmp_path / "seed=0" / "saved").exists()
