"""A file of a finished run that was altered, or is of another run, is noticed by what reads it."""

import json
import os
import shutil

import pytest

from dctps_jax.errors import UserError
from dctps_jax.pruning import load_masks, load_run_masks, save_masks
from dctps_jax.reports.records import read_records, read_run, write_records
from dctps_jax.runs.workdir import read_results
from tests.small_runs import small_run

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture(scope="module")
def other(small, tmp_path_factory):
    """A run that differs in its seed."""
    workdir = tmp_path_factory.mktemp("other")
    small_run(workdir, checkpoint_every_steps=2, seed=1)
    return workdir


@pytest.fixture
def run(plain, tmp_path):
    return shutil.copytree(plain, tmp_path / "run")


def alter(path, *fields, value):
    whole = json.loads(path.read_text())
    node = whole
    for field in fields[:-1]:
        node = node[field]
    assert node[fields[-1]] != value
    node[fields[-1]] = value
    path.write_text(json.dumps(whole))


def lose(path, field):
    whole = json.loads(path.read_text())
    del whole[field]
    path.write_text(json.dumps(whole))


def refused(act, *parts):
    with pytest.raises(UserError) as caught:
        act()
    for part in parts:
        assert str(part) in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "value"),
    [
        (("test_accuracy_final",), 0.5),
        (("environment", "python"), "3.1"),
        (("digests", "config"), "0"),
        (("digests", "results.json"), None),
        (("digests",), 3),
    ],
)
def test_altered_results(run, fields, value):
    alter(run / "results.json", *fields, value=value)
    for act in (lambda: read_results(run), lambda: read_run(run), lambda: small_run(run, checkpoint_every_steps=2)):
        refused(act, run / "results.json")


def test_lost_digests(run):
    """Results without digests are of version 0.1.0; those with some have all of them."""
    lose(run / "results.json", "digests")
    assert read_results(run)["step"] == 10
    whole = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(whole | {"digests": {"config": "0"}}))
    refused(lambda: read_results(run), run / "results.json", "digest")


def test_altered_rows(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows[0]["train_loss"] += 1
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused(lambda: read_run(run), run / "metrics.jsonl", "command")
    small_run(run, checkpoint_every_steps=2)  # as the message says
    assert read_run(run).rows != rows


def test_another_config(run):
    alter(run / "config.json", "log_every_steps", value=7)  # changes nothing
    read_run(run)
    alter(run / "config.json", "optimizer", "learning_rate", value=0.5)
    refused(lambda: read_run(run), run, "different runs")


@pytest.mark.parametrize("name", ["results.json", "config.json", "metrics.jsonl"])
def test_file_of_another_run(run, other, name):
    shutil.copy(other / name, run / name)
    refused(lambda: read_run(run), run)


def test_masks_of_another_run(run, other):
    assert load_run_masks(run).keys() == load_masks(other / "masks.npz").keys()
    shutil.copy(other / "masks.npz", run / "masks.npz")
    refused(lambda: load_run_masks(run), run / "masks.npz")
    masks = load_masks(run / "masks_initial.npz")
    save_masks(run / "masks.npz", masks)
    path = next(iter(masks))
    masks[path].flat[:2] = ~masks[path].flat[:2]
    save_masks(run / "masks.npz", masks)
    refused(lambda: load_run_masks(run), run / "masks.npz")


@pytest.mark.parametrize("is_finished", [True, False])
@pytest.mark.parametrize("kind", ["latest", "best"])
def test_checkpoints_of_another_run(run, other, kind, is_finished):
    if not is_finished:
        (run / "results.json").unlink()
    folder = run / "checkpoints" / kind
    shutil.rmtree(folder)
    shutil.copytree(other / "checkpoints" / kind, folder)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    if kind == "best" and is_finished:
        small_run(run, checkpoint_every_steps=2)  # which reads no weights
    elif (
        kind == "best"
        and not (folder / str(json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["step"])).exists()
    ):
        pytest.skip("the other run was best at another step")
    else:
        refused(lambda: small_run(run, checkpoint_every_steps=2), folder, "a checkpoint of another run")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["config.json", "results.json", "metrics.jsonl"])
def test_a_run_that_lost_its_config_is_not_left_out_of_a_report(run, plain, tmp_path, name):
    shutil.copytree(plain, tmp_path / "run2")
    for lost in {"config.json", "results.json", "metrics.jsonl"} - {name}:
        (run / lost).unlink()
    if name == "config.json":
        assert len(read_records(tmp_path)) == 2
    else:
        refused(lambda: read_records(tmp_path), run / "config.json")


def test_altered_file_of_all_runs(run, other, tmp_path):
    file = tmp_path / "runs.jsonl"
    write_records(file, [read_run(run, "first"), read_run(other, "second")])
    head, *lines = file.read_text().splitlines(keepends=True)
    assert [record.name for record in read_records(file)] == ["first", "second"]
    file.write_text("".join(lines))  # as version 0.1.0 wrote it
    assert len(read_records(file)) == 2
    for damaged in ([head, lines[0]], [head, *reversed(lines)], [head, lines[0].replace("0.001", "0.002"), lines[1]]):
        file.write_text("".join(damaged))
        refused(lambda: read_records(file), file, "digest")


@pytest.mark.parametrize("name", ["config.json", "results.json", "metrics.jsonl"])
def test_a_pipe_is_not_waited_for(run, name):
    (run / name).unlink()
    os.mkfifo(run / name)
    refused(lambda: read_run(run), run / name, "a pipe")


def test_a_pipe_in_the_place_of_the_lock(run):
    (run / ".lock").unlink(missing_ok=True)
    os.mkfifo(run / ".lock")
    small_run(run, checkpoint_every_steps=2)
