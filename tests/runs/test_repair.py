"""What a checkpoint knows of the other files is written anew. A run without its checkpoints does not start over."""

import json
import shutil

import numpy as np
import pytest

from dctps_jax.errors import UserError
from dctps_jax.pruning import load_masks, save_masks
from tests.killed_runs import Kill, copy_unfinished, flip_content, kill_at
from tests.small_runs import assert_same_end, rows, small_run, steps

pytestmark = pytest.mark.usefixtures("small")

MASKS = ("masks.npz", "masks_initial.npz")


@pytest.fixture(scope="module")
def moving(small, tmp_path_factory):
    """The directory of a finished run that moved weights."""
    workdir = tmp_path_factory.mktemp("moving")
    small_run(workdir, checkpoint_every_steps=2, sparse_training__method="set", sparse_training__update_every=2)
    return workdir


def run_again(workdir, finished):
    options = {"sparse_training__method": "set", "sparse_training__update_every": 2} if finished == "moving" else {}
    return small_run(workdir, checkpoint_every_steps=2, **options)


def edit_rows(path, change):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in change(lines)))


METRICS_FAULTS = {
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "no UTF-8": lambda path: path.write_bytes(b"\xff" + path.read_bytes()),
    "no JSON": lambda path: path.write_text("{" + path.read_text()),
    "a key renamed": lambda path: path.write_text(path.read_text().replace("val_accuracy", "val_accurac", 1)),
    "an altered digit": lambda path: edit_rows(path, lambda rows: [{**rows[0], "val_accuracy": 0.99}, *rows[1:]]),
    "a text for a number": lambda path: edit_rows(path, lambda rows: [{**rows[0], "train_loss": "1"}, *rows[1:]]),
    "a doubled row": lambda path: edit_rows(path, lambda rows: [rows[0], *rows]),
    "the last row doubled": lambda path: edit_rows(path, lambda rows: [*rows, rows[-1]]),
    "a row without": lambda path: edit_rows(path, lambda rows: rows[1:]),
    "no rows": lambda path: path.write_text(""),
}


@pytest.mark.parametrize("fault", METRICS_FAULTS)
def test_metrics_of_a_finished_run_are_written_anew(plain, tmp_path, fault, caplog):
    workdir = tmp_path / "run"
    shutil.copytree(plain, workdir)
    path = workdir / "metrics.jsonl"
    METRICS_FAULTS[fault](path)
    altered = path.read_bytes() if path.is_file() else None
    run_again(workdir, "plain")
    assert path.read_bytes() == (plain / "metrics.jsonl").read_bytes()
    assert caplog.text.count("metrics.jsonl") and "written anew from the checkpoint" in caplog.text
    if altered is not None:  # nothing is thrown away
        assert (workdir / "damaged" / "metrics.jsonl").read_bytes() == altered


@pytest.mark.parametrize("fault", ["an altered digit", "no UTF-8"])
def test_metrics_of_a_resumed_run_are_written_anew(plain, tmp_path, fault, caplog):
    workdir = copy_unfinished(plain, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "latest" / "10")
    METRICS_FAULTS[fault](workdir / "metrics.jsonl")
    run_again(workdir, "plain")
    assert_same_end(workdir, plain)
    assert "metrics.jsonl" in caplog.text and "is written anew" in caplog.text


def test_rows_that_come_again_are_no_fault(plain, tmp_path, caplog):
    workdir = copy_unfinished(plain, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "latest" / "10")
    run_again(workdir, "plain")
    assert_same_end(workdir, plain)
    assert caplog.text == "" and not (workdir / "damaged").exists()


def foreign(path):
    masks = load_masks(path)
    save_masks(path, {name: np.roll(mask, 1) for name, mask in masks.items()})


MASK_FAULTS = {
    "missing": lambda path: path.unlink(),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:500]),
    "foreign": foreign,
    "without a layer": lambda path: save_masks(path, dict(list(load_masks(path).items())[1:])),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("fault", MASK_FAULTS)
@pytest.mark.parametrize("finished", ["plain", "moving"])
def test_masks_of_a_finished_run_are_written_anew(finished, tmp_path, fault, caplog, request):
    expected = request.getfixturevalue(finished)
    for name in MASKS:
        workdir = tmp_path / name
        shutil.copytree(expected, workdir)
        MASK_FAULTS[fault](workdir / name)
        caplog.clear()
        run_again(workdir, finished)
        for file in MASKS:
            found, wanted = load_masks(workdir / file), load_masks(expected / file)
            assert found.keys() == wanted.keys()
            assert all(np.array_equal(found[path], wanted[path]) for path in wanted)
        assert caplog.text.count("written anew") == 1 and name in caplog.text


@pytest.mark.parametrize("fault", ["missing", "foreign"])
@pytest.mark.parametrize("finished", ["plain", "moving"])
def test_a_run_goes_on_by_its_checkpoint_whatever_became_of_the_masks(finished, tmp_path, fault, request):
    expected = request.getfixturevalue(finished)
    workdir = copy_unfinished(expected, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "latest" / "10")
    for name in MASKS:
        MASK_FAULTS[fault](workdir / name)
    run_again(workdir, finished)
    assert_same_end(workdir, expected)
    for name in MASKS:
        found, wanted = load_masks(workdir / name), load_masks(expected / name)
        assert found.keys() == wanted.keys() and all(np.array_equal(found[path], wanted[path]) for path in wanted)


def test_finished_run_without_checkpoints_names_what_nothing_can_mend(plain, tmp_path, caplog):
    workdir = tmp_path / "run"
    shutil.copytree(plain, workdir)
    shutil.rmtree(workdir / "checkpoints")
    run_again(workdir, "plain")
    assert caplog.text == ""  # whoever needs the room may remove them
    (workdir / "masks.npz").unlink()
    (workdir / "masks_initial.npz").write_bytes(b"")
    (workdir / "metrics.jsonl").write_text("{}\n")
    run_again(workdir, "plain")
    assert all(f"{name} " in caplog.text for name in (*MASKS, "metrics.jsonl")) and "Traceback" not in caplog.text
    assert not (workdir / "damaged").exists()
    shutil.copy(plain / "metrics.jsonl", workdir)
    METRICS_FAULTS["an altered digit"](workdir / "metrics.jsonl")
    caplog.clear()
    run_again(workdir, "plain")
    assert "metrics.jsonl is not what the run left there; no checkpoint is left" in caplog.text


def test_finished_run_with_an_older_checkpoint_only_is_left_alone(plain, tmp_path, caplog):
    workdir = tmp_path / "run"
    shutil.copytree(plain, workdir)
    flip_content(workdir, 10)
    run_again(workdir, "plain")
    assert (workdir / "metrics.jsonl").read_bytes() == (plain / "metrics.jsonl").read_bytes()
    assert caplog.text.count("passed over") == 1 and "is written anew" not in caplog.text
    assert "the last checkpoint" in caplog.text and "remove results.json and give the same command" in caplog.text
    (workdir / "results.json").unlink()
    run_again(workdir, "plain")
    assert_same_end(workdir, plain)


@pytest.mark.parametrize("lost", ["damaged", "latest removed", "checkpoints removed"])
def test_a_run_without_its_checkpoints_does_not_start_over_silently(plain, tmp_path, lost, caplog):
    workdir = copy_unfinished(plain, tmp_path / "run")
    if lost == "damaged":
        for step in steps(workdir):
            flip_content(workdir, step)
    else:
        shutil.rmtree(workdir / "checkpoints" / ("latest" if lost == "latest removed" else ""))
    metrics = (workdir / "metrics.jsonl").read_bytes()
    for _ in range(2):  # also when it has been said once
        with pytest.raises(UserError) as stopped:
            run_again(workdir, "plain")
        message = str(stopped.value)
        assert f"{workdir / 'checkpoints' / 'latest'} holds no sound checkpoint" in message and "\n" not in message
        assert "metrics.jsonl has 2 epochs" in message and "remove metrics.jsonl and checkpoints" in message
        assert ("damaged ones are in" in message) == (lost == "damaged")
        assert (workdir / "metrics.jsonl").read_bytes() == metrics
    # On purpose, as the message says.
    (workdir / "metrics.jsonl").unlink()
    shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
    run_again(workdir, "plain")
    assert_same_end(workdir, plain)


def test_damage_before_the_first_epoch_does_not_start_over_silently(tmp_path):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Kill):
        kill_at(patch, 2)
        run_again(tmp_path, "plain")
    assert steps(tmp_path) == [2] and rows(tmp_path) == []
    flip_content(tmp_path, 2)
    for _ in range(2):
        with pytest.raises(UserError, match="holds no sound checkpoint, but there was one; damaged ones are in"):
            run_again(tmp_path, "plain")
