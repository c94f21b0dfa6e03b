"""Runs that are asked for more epochs or seeds end as if they had been started so, or are refused."""

import json
import shutil

import pytest

from dctps_jax.errors import UserError
from dctps_jax.pruning import load_masks
from dctps_jax.reports.records import read_records
from dctps_jax.runs.workdir import read_config, read_results
from tests.killed_runs import run_through_kills, run_until_killed
from tests.small_runs import STEPS_PER_EPOCH as EPOCH
from tests.small_runs import assert_same_end, results, rows, small_run

pytestmark = pytest.mark.usefixtures("small")
OPTIONS = {"checkpoint_every_steps": 2}


@pytest.fixture(scope="module")
def three(small, tmp_path_factory):
    """A run that was asked for three epochs at the start."""
    workdir = tmp_path_factory.mktemp("three")
    small_run(workdir, num_epochs=3, **OPTIONS)
    return workdir


def copy_of(workdir, target):
    return shutil.copytree(workdir, target / "run")


def files_of(workdir):
    return {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file() and path.name != ".lock"}


def assert_grown(workdir, expected):
    assert_same_end(workdir, expected)
    assert (workdir / "config.json").read_bytes() == (expected / "config.json").read_bytes()
    for name in ("masks.npz", "masks_initial.npz", "data.json"):
        assert (workdir / name).read_bytes() == (expected / name).read_bytes()
    assert not (workdir / "damaged").exists()


def test_a_finished_run_goes_on_with_more_epochs(tmp_path, plain, three, capsys, caplog):
    workdir = copy_of(plain, tmp_path)
    before = (workdir / "results.json").read_bytes()
    small_run(workdir, num_epochs=3, **OPTIONS)
    printed = capsys.readouterr().out
    assert "run grows, num_epochs from 2 to 3; the earlier results are in" in printed
    assert f"going on from step {2 * EPOCH}" in printed and not caplog.records
    assert_grown(workdir, three)
    assert (workdir / "results_2_epochs.json").read_bytes() == before
    small_run(workdir, num_epochs=3, **OPTIONS)
    assert "is finished" in capsys.readouterr().out
    (record,) = read_records(workdir)
    assert record.results is not None and record.config["num_epochs"] == 3


def test_growth_survives_kills_and_grows_again(tmp_path, plain, three):
    workdir = copy_of(plain, tmp_path)
    before = results(workdir)
    # Before anything of the third epoch is saved, in its middle, and before the results.
    run_through_kills(workdir, [1, 3, 5], num_epochs=3, **OPTIONS)
    assert_grown(workdir, three)
    kept = json.loads((workdir / "results_2_epochs.json").read_text())
    assert {name: kept[name] for name in before} == before


def test_the_outcome_of_before_stands_beside_a_run_that_grows(tmp_path, plain):
    workdir = copy_of(plain, tmp_path)
    run_until_killed(workdir, 3, num_epochs=3, **OPTIONS)
    assert not (workdir / "results.json").exists() and (workdir / "results_2_epochs.json").exists()
    (record,) = read_records(workdir)
    assert record.results is None and record.config["num_epochs"] == 3
    with pytest.raises(UserError, match=r"has trained for 3 epochs, and .*num_epochs is 2; .*results_2_epochs\.json"):
        small_run(workdir, **OPTIONS)


def test_an_unfinished_run_is_asked_for_more_or_fewer_epochs(tmp_path, plain, three):
    run_until_killed(tmp_path / "run", 3, num_epochs=9, **OPTIONS)  # in the first epoch
    small_run(tmp_path / "run", num_epochs=2, **OPTIONS)
    assert_grown(tmp_path / "run", plain)
    assert not list((tmp_path / "run").glob("results_*"))
    run_until_killed(tmp_path / "again", 4, num_epochs=2, **OPTIONS)
    small_run(tmp_path / "again", num_epochs=3, **OPTIONS)
    assert_grown(tmp_path / "again", three)


def test_fewer_epochs_than_trained_are_refused(tmp_path, three):
    before = files_of(three)
    with pytest.raises(UserError, match=r"has trained for 3 epochs, and config\.num_epochs is 2; ask for at least 3, "):
        small_run(three, num_epochs=2, **OPTIONS)
    assert files_of(three) == before


COSINE = {"optimizer__schedule": "cosine", "optimizer__warmup_epochs": 1.0}
GROW = r"from config\.num_epochs=2 to 3: config\."


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            COSINE,
            rf"{GROW}optimizer\.schedule is 'cosine', which with 3 epochs sets another learning rate from step 7 on",
        ),
        ({"optimizer__schedule": "one_cycle"}, rf"{GROW}optimizer\.schedule is 'one_cycle', .* from step 2 on"),
        (
            {"sparse_training__method": "rigl", "sparse_training__update_every": 4},
            rf"{GROW}sparse_training\.method is 'rigl', .* another share of .* or prune from step 4 on",
        ),
    ],
)
def test_epochs_that_would_have_been_others_are_refused(tmp_path, fields, message):
    small_run(tmp_path, **fields)
    before = files_of(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        small_run(tmp_path, num_epochs=3, **fields)
    assert "2 epochs are trained; keep 2, or train 3 in another directory" in str(caught.value)
    assert files_of(tmp_path) == before


def test_a_cosine_grows_while_it_warms_up(tmp_path):
    small_run(tmp_path / "plain", num_epochs=3, **COSINE)
    run_until_killed(tmp_path / "run", 6, num_epochs=2, **COSINE)
    assert rows(tmp_path / "run") == rows(tmp_path / "plain")[:1]
    small_run(tmp_path / "run", num_epochs=3, **COSINE)
    assert_grown(tmp_path / "run", tmp_path / "plain")


def test_a_plateau_grows(tmp_path):
    fields = {"optimizer__schedule": "plateau", "optimizer__patience": 1, "optimizer__learning_rate": 0.3}
    fields |= {"optimizer__ema_decay": 0.9, "optimizer__accumulate_steps": 2}
    small_run(tmp_path / "plain", num_epochs=5, **fields)
    assert rows(tmp_path / "plain")[-1]["learning_rate"] < 0.3
    for num_epochs in (2, 4, 5):
        small_run(tmp_path / "run", num_epochs=num_epochs, **fields)
    assert_grown(tmp_path / "run", tmp_path / "plain")
    assert (tmp_path / "run" / "results_4_epochs.json").exists()


def test_moved_weights_are_kept_where_no_update_would_have_been_another(tmp_path, caplog):
    # Weights move before step 2 and 4; 0.1 of 50 steps and of 55 are 5 steps.
    fields = {"sparse_training__method": "set", "sparse_training__update_every": 2, "batch_size": 32}
    fields |= {"sparse_training__stop_fraction": 0.1}
    small_run(tmp_path / "plain", num_epochs=11, **fields)
    small_run(tmp_path / "run", num_epochs=10, **fields)
    moved = load_masks(tmp_path / "run" / "masks.npz")
    small_run(tmp_path / "run", num_epochs=11, **fields)
    assert not caplog.records
    assert_grown(tmp_path / "run", tmp_path / "plain")
    kept = load_masks(tmp_path / "run" / "masks_10_epochs.npz")
    assert all((kept[path] == mask).all() for path, mask in moved.items())


@pytest.fixture(scope="module")
def three_seeds(small, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("three_seeds")
    small_run(workdir, num_seeds=3, **OPTIONS)
    return workdir


def assert_same_seeds(workdir, expected):
    assert results(workdir) == results(expected) and read_results(workdir)["seeds"] == [0, 1, 2]
    assert read_config(workdir) == read_config(expected)
    assert {path.name for path in workdir.iterdir()} - {"results_2_seeds.json"} == {
        path.name for path in expected.iterdir()
    }
    assert (workdir / "data.json").read_bytes() == (expected / "data.json").read_bytes()
    for seed in range(3):
        assert_grown(workdir / f"seed_{seed}", expected / f"seed_{seed}")


def test_one_seed_becomes_three(tmp_path, plain, three_seeds, capsys, caplog):
    workdir = copy_of(plain, tmp_path)
    (workdir / "curves.png").touch()  # what the user made stays
    small_run(workdir, num_seeds=3, **OPTIONS)
    assert f"the run with seed 0 is in {workdir / 'seed_0'} now" in capsys.readouterr().out
    (workdir / "curves.png").unlink()
    assert_same_seeds(workdir, three_seeds)
    assert not caplog.records
    assert len(read_records(workdir)) == 3


def test_one_seed_that_is_not_finished_becomes_three(tmp_path, three_seeds):
    run_until_killed(tmp_path / "run", 3, **OPTIONS)
    run_through_kills(tmp_path / "run", [3], num_seeds=3, **OPTIONS)
    assert_same_seeds(tmp_path / "run", three_seeds)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_a_move_that_was_killed_is_finished(tmp_path, three_seeds, plain, count):
    workdir = copy_of(plain, tmp_path)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill_rename(patch, count)
        small_run(workdir, num_seeds=3, **OPTIONS)
    shutil.copytree(three_seeds / "seed_1", workdir / "seed_1")
    shutil.copytree(three_seeds / "seed_2", workdir / "seed_2")
    small_run(workdir, num_seeds=3, **OPTIONS)
    for seed in range(3):
        assert_grown(workdir / f"seed_{seed}", three_seeds / f"seed_{seed}")
    assert results(workdir) == results(three_seeds)


def kill_rename(patch, count):
    """Raise at the `count`-th file that moves; after the last file, too."""
    from dctps_jax.runs import growth

    moved, rename = [], growth.os.rename

    def limited(source, target):
        if len(moved) == count:
            raise KeyboardInterrupt
        moved.append(source)
        rename(source, target)

    patch.setattr(growth.os, "rename", limited)


def test_two_seeds_become_three(tmp_path, three_seeds):
    small_run(tmp_path / "run", num_seeds=2, **OPTIONS)
    before = (tmp_path / "run" / "results.json").read_bytes()
    small_run(tmp_path / "run", num_seeds=3, **OPTIONS)
    assert_same_seeds(tmp_path / "run", three_seeds)
    assert (tmp_path / "run" / "results_2_seeds.json").read_bytes() == before


def test_fewer_seeds_than_there_are_are_refused(three_seeds):
    for num_seeds in (1, 2):
        message = rf"holds 3 of 3 seeds, and config\.num_seeds is {num_seeds}; ask for at least 3"
        with pytest.raises(UserError, match=message):
            small_run(three_seeds, num_seeds=num_seeds, **OPTIONS)


def test_seeds_and_epochs_grow_together(tmp_path, three_seeds, three):
    workdir = copy_of(three_seeds, tmp_path)
    small_run(workdir, num_seeds=3, num_epochs=3, **OPTIONS)
    assert_grown(workdir / "seed_0", three)
    assert (workdir / "results_2_epochs.json").exists() and (workdir / "seed_2" / "results_2_epochs.json").exists()
    assert read_config(workdir)["num_epochs"] == 3
