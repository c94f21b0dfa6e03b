"""Two processes of two fake devices each train as one process of four, and go on after whatever ends them."""

import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dctps_jax import pruning
from tests.distributed.processes import (
    LIMIT_SECONDS,
    REPO,
    STEPS_PER_EPOCH,
    Group,
    alone,
    assert_left_together,
    free_port,
    group,
    run,
    start,
    wait_for,
)
from tests.killed_runs import flip_content
from tests.small_runs import arrays, assert_same_end, results, rows, steps

SGD = ("--config.optimizer.name=sgd", "--config.optimizer.learning_rate=0.01", "--config.num_epochs=2")

IMAGES = ("--config.data.name=image_folder", "--config.data.image_size=32", "--config.batch_size=8")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The directory of a run of two processes that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("plain")
    finished = run(workdir)
    assert finished.err == ["", ""]
    assert finished.out[0].startswith("lenet on digits") and finished.out[1] == ""
    assert "epoch 2/2" in (workdir / "host_1.log").read_text()
    assert not [entry for entry in workdir.iterdir() if entry.name.startswith(".shared")]
    return workdir


def make_images(folder, seed=0):
    random = np.random.default_rng(seed)
    for part, count in (("train", 48), ("test", 16)):
        for name in ("a", "b"):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                image = random.integers(0, 128, (32, 32, 3), np.uint8) + 127 * (name == "b")
                Image.fromarray(image.astype(np.uint8)).save(folder / part / name / f"{number}.png")


def assert_close(workdir, expected, tolerance):
    assert [row["step"] for row in rows(workdir)] == [row["step"] for row in rows(expected)]
    found, wanted = arrays(workdir), arrays(expected)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=tolerance, err_msg=name)


def test_two_processes_equal_one(tmp_path):
    run(tmp_path / "two", *SGD)
    assert alone(tmp_path / "one", *SGD)[0] == 0
    assert steps(tmp_path / "two")[-1] == 2 * STEPS_PER_EPOCH
    assert_close(tmp_path / "two", tmp_path / "one", 1e-6)


def test_images_of_a_folder_out_of_the_cache(tmp_path):
    make_images(tmp_path / "images")
    places = (f"--config.data.dir={tmp_path / 'images'}", f"--config.data.cache_dir={tmp_path / 'cache'}")
    options = (*SGD, *IMAGES, *places)
    assert alone(tmp_path / "one", *options)[0] == 0  # it decodes them
    run(tmp_path / "two", *options)
    assert_close(tmp_path / "two", tmp_path / "one", 1e-5)


def test_streamed_images_are_those_on_the_devices(tmp_path, plain):
    run(tmp_path, "--config.data.streaming=on")
    assert_close(tmp_path, plain, 0)


def test_streamed_files(tmp_path):
    make_images(tmp_path / "images")
    options = (*SGD, *IMAGES, f"--config.data.dir={tmp_path / 'images'}", "--config.data.streaming=on")
    assert alone(tmp_path / "one", *options)[0] == 0
    run(tmp_path / "two", *options)
    assert_close(tmp_path / "two", tmp_path / "one", 1e-5)


@pytest.mark.parametrize("shards", [2, 4])  # within each process, and across both
def test_two_processes_with_a_divided_state(tmp_path, shards):
    options = (*SGD, "--config.execution.form=masked", "--config.model.offset=None", "--config.pruning.density=0.5")
    assert alone(tmp_path / "one", *options)[0] == 0
    finished = run(tmp_path / "two", *options, f"--config.distributed.shards={shards}", "--config.num_epochs=1")
    assert f"4 cpu device(s), the state divided into {shards} parts" in finished.out[0]
    run(tmp_path / "two", *options, f"--config.distributed.shards={shards}")  # goes on with another epoch
    assert_close(tmp_path / "two", tmp_path / "one", 1e-5)


def test_rigl(tmp_path):
    options = (
        *SGD,
        "--config.sparse_training.method=rigl",
        "--config.sparse_training.update_every=3",
    )
    run(tmp_path / "two", *options)
    assert alone(tmp_path / "one", *options)[0] == 0
    found, wanted = (pruning.load_masks(tmp_path / name / "masks.npz") for name in ("two", "one"))
    assert all(np.array_equal(found[path], wanted[path]) for path in wanted)
    initial = pruning.load_masks(tmp_path / "two" / "masks_initial.npz")
    assert any(not np.array_equal(found[path], initial[path]) for path in found)


def test_several_seeds(tmp_path, plain):
    run(tmp_path, "--config.num_seeds=2")
    assert_same_end(tmp_path / "seed_0", plain)
    assert json.loads((tmp_path / "results.json").read_text())["seeds"] == [0, 1]


@pytest.mark.parametrize("killed", [(1,), (0,), (0, 1)], ids=["second", "first", "both"])
def test_goes_on_after_a_kill(tmp_path, plain, killed):
    processes = group(tmp_path)
    processes.wait_for("epoch 1/2")
    processes.send(signal.SIGKILL, *killed)
    finished = processes.finish()
    assert finished.seconds < 35
    for index in (0, 1):
        assert finished.codes[index] == (-signal.SIGKILL if index in killed else 69)
    if len(killed) == 1:
        assert_left_together(finished, 69, f"process {killed[0]} on ", " is gone; the same command goes on")
    assert not (tmp_path / "results.json").exists() and not (tmp_path / "checkpoints" / "damaged").exists()
    run(tmp_path)
    assert_same_end(tmp_path, plain)


@pytest.mark.parametrize("stopped", [(0,), (1,), (0, 1)], ids=["first", "second", "both"])
def test_goes_on_after_a_signal(tmp_path, plain, stopped):
    processes = group(tmp_path)
    processes.wait_for("epoch 1/2")
    processes.send(signal.SIGTERM, *stopped)
    finished = processes.finish()
    assert finished.codes == [143, 143], finished.err
    saved = {err.splitlines()[-1] for err in finished.err}
    assert saved == {
        f"train.py: stopped by SIGTERM; saved at step {steps(tmp_path)[-1]}; the same command goes on from there"
    }
    run(tmp_path)
    assert_same_end(tmp_path, plain)


@pytest.mark.parametrize(("processes", "devices"), [(1, 4), (4, 1), (1, 1)])
def test_other_processes_go_on(tmp_path, processes, devices):
    first = group(tmp_path / "run", *SGD)
    first.wait_for("epoch 1/2")
    first.send(signal.SIGTERM, 0)
    assert first.finish().codes == [143, 143]
    if processes == 1:
        assert alone(tmp_path / "run", *SGD, devices=devices)[0] == 0
    else:
        run(tmp_path / "run", *SGD, processes=processes, devices=devices)
    assert alone(tmp_path / "one", *SGD)[0] == 0
    assert_close(tmp_path / "run", tmp_path / "one", 1e-6)


def test_a_damaged_checkpoint_is_moved_once(tmp_path, plain):
    shutil.copytree(plain, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    flip_content(tmp_path / "run", steps(plain)[-1])
    finished = run(tmp_path / "run")
    assert finished.err[0].count("is damaged and passed over") == 1 and finished.err[1] == ""
    assert [entry.name for entry in (tmp_path / "run" / "checkpoints" / "damaged").iterdir()] == [
        f"latest_{steps(plain)[-1]}"
    ]
    assert rows(tmp_path / "run") == rows(plain) and results(tmp_path / "run") == results(plain)


def test_another_config_on_one_host(tmp_path):
    other = {1: ("--config.optimizer.learning_rate=0.002",)}
    finished = group(tmp_path / "run", by_process=other).finish()
    assert_left_together(finished, 2, "config.optimizer.learning_rate is 0.001 in process 0 on ", "0.002 in process 1")
    assert not (tmp_path / "run").exists()


def test_another_job_in_the_directory(tmp_path):
    first = group(tmp_path)
    first.wait_for("digits: ")
    second = group(tmp_path, "--config.log_every_steps=3").finish()
    assert_left_together(second, 75, "is in use by another run")
    assert first.finish().codes == [0, 0]


def test_a_directory_for_each_host(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    finished = Group([tmp_path / "a", tmp_path / "b"], (), 2).finish()
    assert_left_together(finished, 2, "is another directory for process 1 than for process 0")
    assert not any(path.name != ".lock" for name in ("a", "b") for path in (tmp_path / name).iterdir())


def test_images_missing_on_one_host(tmp_path):
    make_images(tmp_path / "images")
    options = (*IMAGES, f"--config.data.cache_dir={tmp_path / 'cache'}")
    folders = {0: (f"--config.data.dir={tmp_path / 'images'}",), 1: (f"--config.data.dir={tmp_path / 'none'}",)}
    finished = group(tmp_path / "run", *options, by_process=folders).finish()
    assert_left_together(finished, 2, f"{tmp_path / 'none'}")


def test_other_images_on_one_host(tmp_path):
    folders = {}
    for index in range(2):
        make_images(tmp_path / f"{index}", seed=index)
        folders[index] = (
            f"--config.data.dir={tmp_path / f'{index}'}",
            f"--config.data.cache_dir={tmp_path / f'cache_{index}'}",
        )
    finished = group(tmp_path / "run", *IMAGES, by_process=folders).finish()
    assert_left_together(finished, 2, "the images of process 1 are not those of process 0 (", "; give all hosts")


def test_a_signal_before_the_training_ends_all(tmp_path):
    processes = group(tmp_path)
    processes.wait_for("digits: ")
    processes.send(signal.SIGTERM, 1)
    finished = processes.finish()
    assert_left_together(finished, 143, "stopped by SIGTERM; the same command starts again")
    assert finished.seconds < 30 < LIMIT_SECONDS


def test_a_finished_run_reports(plain):
    finished = run(plain)
    assert finished.out[0].count("\n") == 1 and "is finished" in finished.out[0] and finished.out[1] == ""


def test_processes_that_slurm_starts(tmp_path):
    job = {
        "SLURM_JOB_ID": str(free_port()),  # the port follows from it
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
    }
    of_process = [job | {"SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)} for index in range(2)]
    options = ("--config.num_epochs=1", "--config.distributed.coordinator=auto")
    processes = [start(tmp_path, options, 2, environment) for environment in of_process]
    outputs = [process.communicate(timeout=LIMIT_SECONDS) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "4 cpu device(s)" in outputs[0][0] and "device(s)" not in outputs[1][0]


def test_launch_starts_all_and_passes_signals_on(tmp_path):
    command = [sys.executable, "-m", "dctps_jax.cli.launch", "--processes", "2", "--devices", "2", "--"]
    options = ["--config", "configs/lenet_digits.py", "--workdir", str(tmp_path), "--config.num_epochs=99"]
    process = subprocess.Popen(
        [*command, *options], cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(process, "epoch ")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 143, err
    assert err.splitlines()[-1].startswith("train.py: stopped by SIGTERM; saved at step ") and "Traceback" not in err
