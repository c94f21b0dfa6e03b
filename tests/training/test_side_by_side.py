"""Several seeds in one program: the same runs as one by one, to rounding, and as safe against kills."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dctps_jax import UserError
from dctps_jax.data.batches import Normalization
from dctps_jax.execution import apply_kernel
from dctps_jax.geometry import Geometry
from dctps_jax.offsets.dct import DCT
from dctps_jax.plan import Work
from dctps_jax.pruning import load_masks
from dctps_jax.seeds import stream
from dctps_jax.training import loop
from dctps_jax.training.side_by_side import over_seeds, parts, stacked
from dctps_jax.training.stopping import NonFiniteLoss
from tests.training.small_runs import arrays, assert_same_end, placement_on, results, rows, small_run, steps
from tests.training.test_loop import make_plan
from tests.training.test_run import run_through_kills, run_until_killed

pytestmark = pytest.mark.usefixtures("small")

SIDE_BY_SIDE = {"num_seeds": 2, "parallel_seeds": True, "checkpoint_every_steps": 2}


def test_stacked_trees_come_apart_again():
    trees = [{"a": jnp.full((2, 3), number), "b": jnp.asarray(number)} for number in range(3)]
    again = parts(stacked(trees), 3)
    assert jax.tree.all(jax.tree.map(np.array_equal, trees, again))
    assert stacked(trees[:1]) is trees[0] and parts(trees[0], 1) == [trees[0]]


def test_each_seed_has_its_own_random_numbers_and_moments():
    plans = [
        make_plan(seed=seed, normalization=Normalization((seed, 0.0, 0.0), (1.0, 1.0, 1.0)))
        for seed in (0, 5, 2**32 - 1)
    ]

    def numbers(plan, shared, own):
        noise = jax.random.uniform(jax.random.fold_in(stream(plan.seed, "augment"), own), (4,))
        return noise, jnp.asarray(plan.normalization.mean)[0] + shared

    found = over_seeds(numbers, plans, {0})(jnp.ones(()), jnp.arange(3))
    for number, plan in enumerate(plans):
        expected = numbers(plan, jnp.ones(()), jnp.asarray(number))
        np.testing.assert_array_equal(found[0][number], expected[0])
        np.testing.assert_allclose(found[1][number], expected[1], rtol=1e-7)


@pytest.fixture(scope="module")
def together(small, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("together")
    small_run(workdir, **SIDE_BY_SIDE)
    return workdir


def assert_same_to_rounding(workdir, expected):
    for row, wanted in zip(rows(workdir), rows(expected), strict=True):
        assert row["step"] == wanted["step"]
        assert row["train_loss"] == pytest.approx(wanted["train_loss"], rel=1e-3)
        assert row["val_loss"] == pytest.approx(wanted["val_loss"], rel=1e-3)
        assert row.get("weights_moved") == wanted.get("weights_moved")
    for name in ("masks_initial.npz", "masks.npz"):
        found, masks = load_masks(workdir / name), load_masks(expected / name)
        assert all(np.mean(found[path] == masks[path]) > 0.999 for path in masks), name
    found = arrays(workdir)
    for name, array in arrays(expected).items():
        if name.startswith("state/params") and array.shape == found[name].shape:
            np.testing.assert_allclose(found[name], array, rtol=0, atol=2e-3, err_msg=name)


def test_seeds_side_by_side_are_the_runs_of_each(tmp_path, plain, together):
    small_run(tmp_path, seed=1, checkpoint_every_steps=2)
    assert_same_to_rounding(together / "seed_0", plain)
    assert_same_to_rounding(together / "seed_1", tmp_path)
    whole = json.loads((together / "results.json").read_text())
    assert whole["seeds"] == [0, 1]
    assert whole["test_accuracy_final"] == np.mean(
        [results(together / f"seed_{seed}")["test_accuracy_final"] for seed in (0, 1)]
    )


def test_killed_at_any_write_they_end_the_same(tmp_path, together):
    # Saves of two seeds and of their best, before and after each; at 2 and 3 only the first seed has saved step 2.
    run_through_kills(tmp_path, [2, 3, 4, 9, 12, 7], **SIDE_BY_SIDE)
    for seed in (0, 1):
        assert_same_end(tmp_path / f"seed_{seed}", together / f"seed_{seed}")


def test_what_they_began_they_may_end_one_by_one(tmp_path, together):
    run_through_kills(tmp_path, [6], **SIDE_BY_SIDE)
    small_run(tmp_path, **SIDE_BY_SIDE | {"parallel_seeds": False})
    assert steps(tmp_path / "seed_1") == steps(together / "seed_1")


def test_what_was_begun_one_by_one_does_not_go_back(tmp_path):
    one_by_one = SIDE_BY_SIDE | {"parallel_seeds": False}
    run_until_killed(tmp_path, 4, **one_by_one)  # after the second save of the first seed
    saved = steps(tmp_path / "seed_0")
    assert len(saved) == 2
    with pytest.raises(UserError, match=r"at the steps 4, 0, and have saved none in common .*parallel_seeds=False"):
        small_run(tmp_path, **SIDE_BY_SIDE)
    assert steps(tmp_path / "seed_0") == saved


def test_several_devices(tmp_path, together, monkeypatch):
    monkeypatch.setattr(loop, "place_on_all_devices", lambda: placement_on(2))
    small_run(tmp_path, **SIDE_BY_SIDE | {"num_epochs": 1}, execution__method="dense")
    for seed in (0, 1):
        found, expected = rows(tmp_path / f"seed_{seed}"), rows(together / f"seed_{seed}")
        assert found[0]["train_loss"] == pytest.approx(expected[0]["train_loss"], rel=1e-3)


def test_the_gradient_of_alpha_is_decided_once_for_all_seeds():
    geometry = Geometry((3, 3, 4, 6), (1, 1), ((1, 1), (1, 1)))
    arguments = jnp.ones((2, 3, 5, 6, 4)), jnp.ones((2, 5)), jnp.arange(5)
    work = Work(geometry, (3, 5, 6, 4), 5, DCT)

    def gradient(alphas):
        def outputs(alpha, inputs, values):
            return apply_kernel("dense", work, inputs, values, alpha, arguments[2]).sum()

        return jax.vmap(jax.grad(outputs))(alphas, *arguments[:2])

    assert "cond[" in str(jax.make_jaxpr(gradient)(jnp.ones(2)))
    # Where one is too small to be divided by, none is.
    np.testing.assert_allclose(gradient(jnp.array([1.0, 1e-9])), gradient(jnp.ones(2)), rtol=1e-4)


def test_seeds_that_are_not_finite_are_named(tmp_path):
    diverging = {"optimizer__name": "sgd", "optimizer__learning_rate": 1e38, "num_seeds": 2, "parallel_seeds": True}
    with pytest.raises(NonFiniteLoss, match=r"with seed 0, 1; .*parallel_seeds=False trains the other seeds"):
        small_run(tmp_path, **diverging)


def test_weights_that_move(tmp_path):
    moving = {
        "sparse_training__method": "rigl", "sparse_training__update_every": 3, "sparse_training__stop_fraction": 1.0,
        "sparse_training__drop_fraction": 0.5,
    }  # fmt: skip
    small_run(tmp_path / "together", num_seeds=2, parallel_seeds=True, **moving)
    small_run(tmp_path / "alone", seed=1, **moving)
    assert sum(sum(row["weights_moved"].values()) for row in rows(tmp_path / "alone")) > 0
    assert_same_to_rounding(tmp_path / "together" / "seed_1", tmp_path / "alone")


def test_scores_that_keep_other_numbers_need_the_masked_form(tmp_path):
    options = {
        "num_seeds": 2,
        "parallel_seeds": True,
        "pruning__method": "snip",
        "num_epochs": 1,
        "model__offset": None,
    }
    with pytest.raises(UserError, match=r"different numbers of weights, in convs\.0 .*execution\.form='masked'"):
        small_run(tmp_path, **options)
    assert not (tmp_path / "config.json").exists()
    small_run(tmp_path, **options, execution__form="masked")
    counts = [results(tmp_path / f"seed_{seed}")["layer_densities"] for seed in (0, 1)]
    assert counts[0] != counts[1]
