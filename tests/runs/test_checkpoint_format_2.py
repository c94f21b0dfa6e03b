"""Checkpoints of format 2, stored as version 0.1.0 wrote them, are read and gone on from.

The stored runs are those of `small_config` with a density of 0.01 and `checkpoint_every_steps=6`, stopped at step 7 of
10; "set" moves weights every 2 steps.
"""

import contextlib
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dctps_jax.errors import UserError
from dctps_jax.pruning import load_masks
from dctps_jax.runs.checkpoint_files import read_checkpoint
from dctps_jax.runs.damage import Damaged
from dctps_jax.runs.workdir import record_config
from tests.small_runs import arrays, rows, small_config, small_run, steps
from tests.unreadable_files import denied_permission, unreachable_file

STORED = Path(__file__).parent / "checkpoints_format_2.zip"
OPTIONS = {
    "static": {"pruning__density": 0.01, "checkpoint_every_steps": 6},
    "set": {
        "pruning__density": 0.01,
        "checkpoint_every_steps": 6,
        "sparse_training__method": "set",
        "sparse_training__update_every": 2,
    },
}
# How version 0.1.0 ends them where nothing disturbs it.
LAST_ROWS = {
    "static": {"step": 10, "train_loss": 24.20089111328125, "val_loss": 23.0140625},
    "set": {"step": 10, "train_loss": 25.24534912109375, "val_loss": 24.062275695800782},
}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("format_2")
    with zipfile.ZipFile(STORED) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(params=OPTIONS)
def stored(request, unpacked, tmp_path):
    """(name, directory) of a run that version 0.1.0 was stopped in."""
    workdir = tmp_path / "run"
    shutil.copytree(unpacked / request.param, workdir)
    record_config(workdir, small_config(**OPTIONS[request.param]))
    return request.param, workdir


def format_of(folder):
    return json.loads((folder / "meta" / "metadata").read_text())["format_version"]


@pytest.mark.usefixtures("small")
def test_it_goes_on_and_ends_as_one_undisturbed(stored, capsys, caplog):
    name, workdir = stored
    initial = load_masks(workdir / "masks_initial.npz")
    small_run(workdir, **OPTIONS[name])
    assert "going on from step 7\n" in capsys.readouterr().out and caplog.text == ""
    # Another processor rounds otherwise than the one that made the stored run.
    last = rows(workdir)[-1]
    assert {field: last[field] for field in LAST_ROWS[name]} == pytest.approx(LAST_ROWS[name], rel=1e-2)
    assert [format_of(workdir / "checkpoints/latest" / str(step)) for step in steps(workdir)] == [2, 3]
    kept, final = (load_masks(workdir / file) for file in ("masks_initial.npz", "masks.npz"))
    assert all(np.array_equal(kept[path], initial[path]) for path in initial)
    assert {path: int(mask.sum()) for path, mask in final.items()} == dict.fromkeys(initial, 123)
    assert all(np.array_equal(final[path], initial[path]) for path in initial) == (name == "static")


def test_every_array_is_there(stored):
    _, workdir = stored
    found = arrays(workdir)
    assert int(found["state/step"]) == 7 and int(found["sums/images"]) == 2 * 32
    masks = load_masks(workdir / "masks_initial.npz")
    assert sum(found[f"state/supports/{path.replace('.', '/')}/support"].size for path in masks) == sum(
        int(mask.sum()) for mask in masks.values()
    )
    assert all(np.isfinite(array).all() for array in found.values())


def test_any_damage_is_noticed_or_harmless(unpacked, tmp_path):
    sound = unpacked / "static" / "checkpoints" / "latest" / "7"
    expected = read_checkpoint(sound).arrays
    damaged = []
    for path in sorted(path.relative_to(sound) for path in sound.rglob("*") if path.is_file()):
        content = (sound / path).read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :]
        for replacement in (None, b"", content[:middle], flipped):
            shutil.rmtree(tmp_path / "7", ignore_errors=True)
            shutil.copytree(sound, tmp_path / "7")
            (tmp_path / "7" / path).unlink() if replacement is None else (tmp_path / "7" / path).write_bytes(
                replacement
            )
            try:
                found = read_checkpoint(tmp_path / "7").arrays
            except Damaged:
                damaged.append(path)
            else:
                assert found.keys() == expected.keys()
                assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)
    assert len(damaged) > 12


@pytest.mark.parametrize("fails", [denied_permission, unreachable_file])
def test_what_is_no_damage_is_passed_on(stored, fails):
    folder = stored[1] / "checkpoints" / "latest" / "7"
    for path in [*(folder / "state").rglob("*.ocdbt"), *(folder / "state" / "d").iterdir()]:
        with fails(path):
            read_checkpoint(folder)


def test_folder_that_must_not_be_read_is_no_damage(stored, monkeypatch):
    def scandir(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", scandir)
    with pytest.raises(PermissionError):
        read_checkpoint(stored[1] / "checkpoints" / "latest" / "7")


def test_what_brackets_in_the_name_left_unmerged_is_read(stored):
    folder = stored[1] / "checkpoints" / "latest" / "7"
    expected = read_checkpoint(folder).arrays
    (folder / "state" / "manifest.ocdbt").unlink()
    shutil.rmtree(folder / "state" / "d")
    found = read_checkpoint(folder).arrays
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


@pytest.mark.usefixtures("small")
def test_masks_that_only_their_file_knows(stored):
    name, workdir = stored
    file = workdir / "masks_initial.npz"
    masks, cut = load_masks(file), file.read_bytes()[:100]
    file.write_bytes(cut)
    refused = (
        pytest.raises(UserError, match=r"masks_initial\.npz is no .npz file, or a truncated one")
        if name == "set"
        else None
    )
    with refused or contextlib.nullcontext():
        small_run(workdir, **OPTIONS[name])
    if name == "static":
        assert all(np.array_equal(mask, masks[path]) for path, mask in load_masks(file).items())
    else:
        assert file.read_bytes() == cut
