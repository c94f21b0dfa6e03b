"""Whole runs whose masks move: RigL and SET, their history, resuming across an update, masks from another run."""

import json

import numpy as np
import pytest

from dctps_jax import UserError
from dctps_jax.pruning import load_masks, save_masks
from tests.killed_runs import run_through_kills, run_until_killed
from tests.small_runs import arrays, assert_same_end, results, rows, small_run

pytestmark = pytest.mark.usefixtures("small")

MOVING = {
    "sparse_training__update_every": 3,
    "sparse_training__stop_fraction": 1.0,
    "sparse_training__drop_fraction": 0.5,
}


@pytest.mark.parametrize("method", ["rigl", "set"])
def test_masks_move_and_counts_stay(tmp_path, method):
    small_run(tmp_path, sparse_training__method=method, **MOVING)
    before, after = load_masks(tmp_path / "masks_initial.npz"), load_masks(tmp_path / "masks.npz")
    assert {path: mask.sum() for path, mask in before.items()} == {path: mask.sum() for path, mask in after.items()}
    moved = [row["weights_moved"] for row in rows(tmp_path)]
    # Ten steps with updates at 3, 6 and 9: one in the first epoch of five steps, two in the second.
    assert moved[0]["fcs.0"] > 0 and moved[1]["fcs.0"] > 0
    assert all(row["convs.0"] == 0 for row in moved)  # full: there is nothing to move to
    assert np.any(before["fcs.0"] != after["fcs.0"])


def test_resuming_across_updates_is_exact(tmp_path):
    options = MOVING | {"sparse_training__method": "rigl", "steps_per_dispatch": 2, "checkpoint_every_steps": 1}
    small_run(tmp_path / "plain", **options)
    run_through_kills(tmp_path / "killed", [1, 2, 3], **options)
    assert_same_end(tmp_path / "killed", tmp_path / "plain")
    for name in ("masks.npz", "masks_initial.npz"):
        plain, killed = load_masks(tmp_path / "plain" / name), load_masks(tmp_path / "killed" / name)
        assert all(np.array_equal(plain[path], killed[path]) for path in plain)


def test_updates_do_not_depend_on_the_steps_a_dispatch(tmp_path):
    options = MOVING | {"sparse_training__method": "set"}
    small_run(tmp_path / "one", **options)
    small_run(tmp_path / "four", steps_per_dispatch=4, **options)
    one, four = (load_masks(tmp_path / name / "masks.npz") for name in ("one", "four"))
    assert np.mean([np.mean(one[path] == four[path]) for path in one]) > 0.99


def test_masks_of_another_run(tmp_path):
    small_run(tmp_path / "first", pruning__method="snip", model__offset=None, num_epochs=1)
    small_run(
        tmp_path / "second", pruning__method="from_run", pruning__run=str(tmp_path / "first"), num_epochs=1, seed=5
    )
    first, second = (load_masks(tmp_path / name / "masks.npz") for name in ("first", "second"))
    assert all(np.array_equal(first[path], second[path]) for path in first)
    assert results(tmp_path / "second")["density"] == results(tmp_path / "first")["density"]
    with pytest.raises(UserError, match=r"nowhere/masks\.npz does not exist"):
        small_run(tmp_path / "third", pruning__method="from_run", pruning__run=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="name a run of the same network"):
        small_run(
            tmp_path / "fourth",
            model__name="resnet18",
            pruning__method="from_run",
            pruning__run=str(tmp_path / "first"),
        )


@pytest.mark.parametrize("method", ["uniform", "snip"])
def test_a_run_with_a_pattern(tmp_path, method):
    options = {"pruning__method": method, "pruning__density": 0.2, "pruning__pattern": "1:5", "num_epochs": 1}
    small_run(tmp_path, pruning__dense_layers=("fcs.2",), **options)
    masks = load_masks(tmp_path / "masks.npz")
    assert masks["fcs.2"].all()
    for path in ("convs.0", "convs.3", "convs.6", "fcs.0"):
        matrix = masks[path].reshape(-1, 5, masks[path].shape[-1])
        assert (matrix.sum(axis=1) == 1).all()
        assert results(tmp_path)["layer_densities"][path] == 0.2
    with pytest.raises(UserError, match=r"each output of convs\.0 has 5·5·3 = 75; .* dense_layers=\('convs\.0'"):
        small_run(tmp_path / "other", **options | {"pruning__pattern": "1:4", "pruning__density": 0.25})


def test_scores_see_the_batches_that_training_begins_with(tmp_path):
    options = {"pruning__method": "force", "pruning__num_steps": 2, "pruning__num_batches": 2, "num_epochs": 1}
    for name in ("one", "again"):
        small_run(tmp_path / name, model__offset=None, **options)
    small_run(tmp_path / "other", model__offset=None, seed=1, **options)
    one, again, other = (load_masks(tmp_path / name / "masks.npz") for name in ("one", "again", "other"))
    assert all(np.array_equal(one[path], again[path]) for path in one)
    assert not all(np.array_equal(one[path], other[path]) for path in one)
    assert json.loads((tmp_path / "one" / "results.json").read_text())["density"] == pytest.approx(0.05, abs=1e-4)


def test_dense_networks_have_nothing_to_move(tmp_path):
    with pytest.raises(UserError, match="no weights to move"):
        small_run(tmp_path, sparse_training__method="rigl", pruning__density=1.0)


def test_a_run_goes_on_with_its_own_masks_whatever_becomes_of_their_source(tmp_path):
    small_run(tmp_path / "source", num_epochs=1)
    options = {"pruning__method": "from_run", "pruning__run": str(tmp_path / "source"), "checkpoint_every_steps": 2}
    run_until_killed(tmp_path / "run", 2, **options)
    masks = load_masks(tmp_path / "source" / "masks.npz")
    save_masks(tmp_path / "source" / "masks.npz", {path: np.ones_like(mask) for path, mask in masks.items()})
    small_run(tmp_path / "run", **options)
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert results(tmp_path / "run")["density"] == kept / sum(mask.size for mask in masks.values())
    assert results(tmp_path / "run")["density_asked"] is None


def test_masks_that_keep_nothing_are_refused(tmp_path):
    small_run(tmp_path / "source", num_epochs=1)
    masks = load_masks(tmp_path / "source" / "masks.npz")
    save_masks(tmp_path / "source" / "masks.npz", {path: np.zeros_like(mask) for path, mask in masks.items()})
    (tmp_path / "source" / "results.json").unlink()  # its digest would tell that the masks were changed
    with pytest.raises(UserError, match="keep no weight"):
        small_run(tmp_path / "run", pruning__method="from_run", pruning__run=str(tmp_path / "source"))


def test_updates_that_never_come_are_warned_of(tmp_path, caplog):
    small_run(tmp_path, sparse_training__method="rigl", num_epochs=1)
    assert "no weight will ever move" in caplog.text


@pytest.mark.parametrize("method", ["static", "rigl"])
def test_both_forms_make_the_same_run_and_go_on_with_each_others_checkpoints(tmp_path, method):
    moving = MOVING if method == "rigl" else {}
    options = moving | {"sparse_training__method": method, "checkpoint_every_steps": 2}
    small_run(tmp_path / "masked", execution__form="masked", **options)
    run_until_killed(tmp_path / "mixed", 2, execution__form="masked", **options)
    small_run(tmp_path / "mixed", execution__form="compact", **options)
    first, second = arrays(tmp_path / "masked"), arrays(tmp_path / "mixed")
    assert {name: array.shape for name, array in first.items()} == {name: array.shape for name, array in second.items()}
    for expected, row in zip(rows(tmp_path / "masked"), rows(tmp_path / "mixed"), strict=True):
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
