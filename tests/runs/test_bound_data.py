"""A run is bound to its data: with other data it is refused, naming what changed; a finished run needs none."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from dctps_jax import data
from dctps_jax.errors import UserError
from dctps_jax.training import seed_data
from tests.killed_runs import Kill, copy_unfinished, kill_at
from tests.small_runs import assert_same_end, small_run

pytestmark = pytest.mark.usefixtures("small")


def with_more_images(digits):
    return dataclasses.replace(
        digits,
        train_images=np.concatenate([digits.train_images, digits.train_images[:5]]),
        train_labels=np.concatenate([digits.train_labels, digits.train_labels[:5]]),
    )


def with_a_pixel_changed(digits):
    images = digits.test_images.copy()
    images[7, 3, 4, 1] ^= 1
    return dataclasses.replace(digits, test_images=images)


def with_images_in_another_order(digits):
    return dataclasses.replace(
        digits, train_images=digits.train_images[::-1].copy(), train_labels=digits.train_labels[::-1].copy()
    )


CHANGES = {
    "more images": (with_more_images, r"training images \(200 then, 205 now\)"),
    "fewer test images": (
        lambda digits: dataclasses.replace(
            digits, test_images=digits.test_images[1:], test_labels=digits.test_labels[1:]
        ),
        r"test images \(50 then, 49 now\)",
    ),
    "a pixel": (with_a_pixel_changed, "the content of images or labels"),
    "a label": (
        lambda digits: dataclasses.replace(digits, train_labels=np.roll(digits.train_labels, 1)),
        "the content of images or labels",
    ),
    "their order": (with_images_in_another_order, "the content of images or labels"),
    "a class": (
        lambda digits: dataclasses.replace(digits, class_names=(*digits.class_names[:-1], "nine")),
        r"classes \(gone: 9; new: nine\)",
    ),
    "the order of the classes": (
        lambda digits: dataclasses.replace(digits, class_names=digits.class_names[::-1]),
        r"classes \(in another order\)",
    ),
}


def use(monkeypatch, dataset):
    monkeypatch.setitem(data.SOURCES, "digits", data.Source(lambda options: dataset))


def files_of(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize("change", CHANGES)
def test_other_data_are_refused(plain, digits, tmp_path, change, monkeypatch):
    workdir = copy_unfinished(plain, tmp_path / "run")
    changed, message = CHANGES[change]
    before = files_of(workdir)
    for without in ("nothing", "data.json", "checkpoints"):  # the checkpoint knows it, too; data.json alone as well
        with monkeypatch.context() as patch:
            use(patch, changed(digits))
            if without == "checkpoints":
                shutil.rmtree(workdir / "checkpoints")
                (workdir / "metrics.jsonl").unlink()
            elif without == "data.json":
                (workdir / "data.json").unlink()
            with pytest.raises(UserError, match=message) as refused:
                small_run(workdir, checkpoint_every_steps=2)
        assert f"--workdir {workdir} belongs to a run on other data" in str(refused.value)
        assert "\n" not in str(refused.value)
        if without == "data.json":
            shutil.copy(plain / "data.json", workdir)
        if without != "checkpoints":
            assert files_of(workdir) == before


@pytest.mark.parametrize("fault", ["missing", "cut", "foreign", "a folder"])
def test_description_of_the_data_is_written_anew_from_the_checkpoint(plain, tmp_path, fault, caplog):
    workdir = copy_unfinished(plain, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "latest" / "10")
    path = workdir / "data.json"
    content = path.read_bytes()
    path.unlink()
    if fault == "cut":
        path.write_bytes(content[:50])
    elif fault == "foreign":
        path.write_text(json.dumps(json.loads(content) | {"train_images": 7}))
    elif fault == "a folder":
        path.mkdir()
    small_run(workdir, checkpoint_every_steps=2)
    assert path.read_bytes() == content
    assert_same_end(workdir, plain)
    assert ("data.json is not what the checkpoint knows" in caplog.text) == (fault != "missing")
    assert (workdir / "damaged" / "data.json").exists() == (fault != "missing")


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_damaged_description_that_no_checkpoint_knows_is_named(plain, tmp_path, text):
    workdir = copy_unfinished(plain, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints")
    (workdir / "metrics.jsonl").unlink()
    (workdir / "data.json").write_text(text)
    with pytest.raises(UserError, match=r"data\.json (cannot be read as JSON|does not describe data)"):
        small_run(workdir, checkpoint_every_steps=2)


def test_another_split_is_refused(plain, tmp_path, monkeypatch):
    workdir = copy_unfinished(plain, tmp_path / "run")
    split = seed_data.split_training
    monkeypatch.setattr(seed_data, "split_training", lambda count, fraction, seed: split(count, fraction, 1))
    with pytest.raises(UserError, match="other data: the split into images to train on and to validate on;"):
        small_run(workdir, checkpoint_every_steps=2)


def test_finished_run_needs_no_data(plain, monkeypatch):
    def gone(options):
        raise UserError("the data are gone")

    monkeypatch.setitem(data.SOURCES, "digits", data.Source(gone))
    small_run(plain, checkpoint_every_steps=2)


def test_seeds_of_one_run_see_the_same_data(digits, tmp_path, monkeypatch):
    options = {"num_seeds": 2, "checkpoint_every_steps": 2}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Kill):
        kill_at(patch, 20)  # after the results of the first seed
        small_run(tmp_path, **options)
    assert (tmp_path / "seed_0" / "results.json").exists() and not (tmp_path / "seed_1" / "config.json").exists()
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"training images \(200 then, 205 now\)"):
        use(patch, with_more_images(digits))
        small_run(tmp_path, **options)
    assert small_run(tmp_path, **options)["seeds"] == [0, 1]
