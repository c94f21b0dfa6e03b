"""What recipes may do: each setting does what it says, and a run that was killed ends as one that was not."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dctps_jax.config import check_config
from dctps_jax.data.regularization import Regularization, cut_out, erase, mix_and_smooth
from dctps_jax.errors import UserError
from dctps_jax.losses import cross_entropy
from dctps_jax.optimizers import OPTIMIZERS, make_optimizer, options_of, rate_scale
from dctps_jax.training.from_config import make_optimizer_and_schedule
from dctps_jax.training.step import move_averages
from tests.killed_runs import run_through_kills
from tests.small_runs import assert_same_end, results, rows, small_config, small_run

ALL = {
    "optimizer__name": "lion",
    "optimizer__options": (("b1", 0.95),),
    "optimizer__schedule": "plateau",
    "optimizer__decay_rate": 0.5,
    "optimizer__patience": 1,
    "optimizer__warmup_epochs": 0.5,
    "optimizer__decay": "kernels",
    "optimizer__clip_norm": 1.0,
    "optimizer__accumulate_steps": 3,
    "optimizer__label_smoothing": 0.1,
    "optimizer__ema_decay": 0.9,
    "data__mixup": 0.2,
    "data__cutout": 8,
    "data__random_erasing": 0.5,
}
PARAMS = {"layer": {"kernel": jnp.array([2.0, -1.0]), "alpha": jnp.array(1.5)}, "bn": {"scale": jnp.array([4.0])}}
GRADS = {"layer": {"kernel": jnp.array([0.5, 0.25]), "alpha": jnp.array(-1.0)}, "bn": {"scale": jnp.array([0.125])}}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("method", ["static", "rigl"])
def test_a_run_with_all_of_it_ends_the_same_when_it_is_killed(tmp_path, method):
    moving = {"sparse_training__update_every": 2} if method == "rigl" else {}
    options = ALL | moving | {"sparse_training__method": method, "checkpoint_every_steps": 1}
    small_run(tmp_path / "plain", **options)
    run_through_kills(tmp_path / "killed", [3, 2, 4], **options)  # where gradients are accumulated, too
    assert_same_end(tmp_path / "killed", tmp_path / "plain")
    assert 0 <= results(tmp_path / "plain")["test_accuracy_ema"] <= 1


def config_of(**settings):
    return small_config(**{f"optimizer__{name}": value for name, value in settings.items()})


def rates(**settings):
    config = config_of(learning_rate=0.5, **settings)
    config.num_epochs = 4
    schedule = make_optimizer_and_schedule(config, 10)[1]
    return np.array([float(schedule(step)) for step in range(40)])


def test_constant_and_warm_up():
    np.testing.assert_allclose(rates(schedule="constant"), 0.5)
    warm = rates(schedule="constant", warmup_epochs=0.5)
    np.testing.assert_allclose(warm[:6], [0.1, 0.2, 0.3, 0.4, 0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(
        rates(milestones=(2,), warmup_epochs=1)[[0, 9, 19, 20]], [0.05, 0.5, 0.5, 0.05], rtol=1e-6
    )


def test_cosine_falls_from_the_end_of_the_warm_up_to_zero():
    found = rates(schedule="cosine", warmup_epochs=1.0)
    np.testing.assert_allclose(found[:10], 0.05 * np.arange(1, 11), rtol=1e-6)
    steps = np.arange(30)
    np.testing.assert_allclose(found[10:], 0.25 * (1 + np.cos(np.pi * steps / 30)), rtol=1e-5)


def test_one_cycle_peaks_after_its_warm_up():
    assert rates(schedule="one_cycle").argmax() == 12 and rates(schedule="one_cycle", warmup_epochs=1.0).argmax() == 10
    assert rates(schedule="one_cycle")[0] == pytest.approx(0.5 / 25)


def test_plateau_lowers_the_rate_where_the_loss_stays():
    config = config_of(schedule="plateau", patience=2, decay_rate=0.1, name="sgd", momentum=0.0, weight_decay=0.0)
    optimizer: Any = make_optimizer_and_schedule(config, 3)[0]
    state, scales = optimizer.init(PARAMS), []
    for step in range(18):  # the mean loss of an epoch falls in the first three of them
        _, state = optimizer.update(GRADS, state, PARAMS, value=jnp.float32(max(10 - step, 4)))
        scales.append(rate_scale(state))
    np.testing.assert_allclose(scales[::3], [1, 1, 1, 1, 1, 0.1], rtol=1e-6)


def updates_of(optimizer, gradients):
    state, all_updates = optimizer.init(PARAMS), []
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, PARAMS)
        all_updates.append(updates)
    return all_updates


def make(name="sgd", **settings):
    return make_optimizer(name, 0.1, **{"momentum": 0.0, "weight_decay": 0.0, "fixup": False} | settings)


def test_decay_on_kernels_alone():
    (updates,) = updates_of(make(weight_decay=0.5, decay="kernels"), [GRADS])
    np.testing.assert_allclose(updates["layer"]["kernel"], [-0.1 * (0.5 + 1.0), -0.1 * (0.25 - 0.5)], rtol=1e-6)
    assert updates["layer"]["alpha"] == pytest.approx(0.1) and updates["bn"]["scale"][0] == pytest.approx(-0.0125)


def test_kernels_at_a_rate_of_their_own():
    (updates,), (plain,) = updates_of(make(kernel_rate=10.0), [GRADS]), updates_of(make(), [GRADS])
    np.testing.assert_allclose(updates["layer"]["kernel"], 10 * plain["layer"]["kernel"], rtol=1e-6)
    assert updates["layer"]["alpha"] == plain["layer"]["alpha"] and updates["bn"]["scale"] == plain["bn"]["scale"]
    (updates,) = updates_of(make("adam", kernel_rate=0.0, weight_decay=0.5), [GRADS])
    assert jnp.all(updates["layer"]["kernel"] == 0) and updates["layer"]["alpha"] != 0


def test_clipping_by_the_norm_of_all_gradients():
    norm = optax.global_norm(GRADS)
    (updates,) = updates_of(make(clip_norm=float(norm) / 2), [GRADS])
    np.testing.assert_allclose(updates["layer"]["kernel"], [-0.025, -0.0125], rtol=1e-5)
    (updates,) = updates_of(make(clip_norm=2 * float(norm)), [GRADS])
    np.testing.assert_allclose(updates["layer"]["kernel"], [-0.05, -0.025], rtol=1e-6)


def test_accumulated_gradients_are_the_mean_and_the_rate_counts_all_steps():
    rate = optax.piecewise_constant_schedule(0.1, {3: 10.0})
    optimizer = make_optimizer("sgd", rate, momentum=0.0, weight_decay=0.0, fixup=False, accumulate_steps=2)
    twice = jax.tree.map(lambda gradient: 3 * gradient, GRADS)
    found = [float(updates["layer"]["alpha"]) for updates in updates_of(optimizer, [GRADS, twice, GRADS, twice])]
    np.testing.assert_allclose(found, [0, 0.1 * 2, 0, 1.0 * 2], rtol=1e-6)


OPTIONS = {"adamw": {"b2": 0.9}, "muon": {"adam_b1": 0.5}, "rmsprop": {"decay": 0.5}}


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_of_optax(name):
    params = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}
    options = OPTIONS.get(name, {})
    optimizer = make_optimizer(name, 0.1, momentum=0.5, weight_decay=0.0, fixup=False, options=options)
    state, gradients = optimizer.init(params), jax.tree.map(lambda leaf: leaf.at[0].set(0.0), params)
    updates: Any = None
    others: Any = None
    for _ in range(3):
        updates, state = optimizer.update(gradients, state, params)
    # It goes down, and a weight without a gradient, as a pruned one, stays as it is.
    assert updates["bias"][1] < 0 and updates["bias"][0] == 0
    assert name == "muon" or jnp.all(updates["kernel"][0] == 0)
    if options:
        plain = make_optimizer(name, 0.1, momentum=0.5, weight_decay=0.0, fixup=False)
        plain_state = plain.init(params)
        for number in range(3):
            scaled = jax.tree.map(lambda leaf, number=number: leaf * (-0.5) ** number, gradients)
            updates, state = optimizer.update(scaled, state, params)
            others, plain_state = plain.update(scaled, plain_state, params)
        assert not np.allclose(flat(updates), flat(others))


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"optimizer__options": (("b3", 0.5),)}, ["'adam' has no option 'b3'", "b1, b2, eps"]),
        ({"optimizer__options": (("momentum", 0.5),), "optimizer__name": "sgd"}, ["'sgd' has no option 'momentum'"]),
        ({"optimizer__name": "muon"}, ["'muon'", "dense networks", "config.pruning.density is 0.", "density 1.0"]),
        (
            {"optimizer__name": "muon", "pruning__method": "from_run", "pruning__run": "there"},
            ["'muon'", "config.pruning.method is 'from_run'; choose another optimiser"],
        ),
        ({"optimizer__warmup_epochs": 2.0}, ["config.optimizer.warmup_epochs is 2.0", "config.num_epochs 2"]),
    ],
)
def test_mistakes(fields, parts):
    with pytest.raises(UserError) as caught:
        check_config(small_config(**fields))
    for part in parts:
        assert part in str(caught.value)


def test_a_decay_that_does_not_exist():
    with pytest.raises(
        UserError, match=r"decay is 'kernel' \(did you mean 'kernels'\?\); it must be one of: all, kernels"
    ):
        make_optimizer("adam", 0.1, momentum=0.9, weight_decay=0.1, fixup=False, decay="kernel")


def test_options_are_those_of_optax():
    assert options_of("sgd") == {} and options_of("lion")["b2"] == 0.99 and "nesterov" not in options_of("nadam")


KEY, WHITE = jax.random.key(0), jnp.ones((200, 12, 16, 1))


@pytest.mark.usefixtures("small")
def test_a_cutout_that_is_larger_than_the_images(tmp_path):
    with pytest.raises(
        UserError, match=r"config\.data\.cutout is 33, but the images have 32×32 pixels; choose at most 32"
    ):
        small_run(tmp_path / "run", data__cutout=33)
    assert not (tmp_path / "run" / "config.json").exists()


def test_cutout_is_a_square_that_may_reach_over_the_border():
    blank = np.asarray(cut_out(WHITE, KEY, 4))[..., 0] == 0
    for image in blank:
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        assert image.sum() == len(rows) * len(columns) and 2 <= len(rows) <= 4 and 2 <= len(columns) <= 4
    assert blank.any((0,)).all() and (blank.sum((1, 2)) == 16).mean() > 0.3


def test_random_erasing_blanks_a_rectangle_in_a_part_of_the_images():
    blank = np.asarray(erase(WHITE, KEY, 0.5))[..., 0] == 0
    erased = blank.any((1, 2))
    assert 0.35 < erased.mean() < 0.65
    for image in blank[erased]:
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        assert image.sum() == len(rows) * len(columns)  # a rectangle
    areas = blank[erased].mean((1, 2))
    assert areas.min() < 0.06 and 0.25 < areas.max() < 0.4
    assert not (np.asarray(erase(WHITE, KEY, 0.0)) == 0).any()


def test_mixup_and_smoothing_give_probabilities():
    images, labels = jnp.arange(4.0)[:, None, None, None], jnp.array([0, 1, 2, 2])
    same, probabilities = mix_and_smooth(
        (images, labels), jnp.int32(0), KEY, Regularization(label_smoothing=0.3, num_classes=3)
    )
    np.testing.assert_allclose(probabilities[0], [0.8, 0.1, 0.1], rtol=1e-6)
    np.testing.assert_array_equal(same, images)
    mixed, probabilities = mix_and_smooth((images, labels), jnp.int32(0), KEY, Regularization(mixup=1.0, num_classes=3))
    weight = 1 - float(mixed[0, 0, 0, 0]) / 3  # of the image itself; the other one is 3
    assert 0.5 <= weight < 1
    np.testing.assert_allclose(probabilities[0], [weight, 0, 1 - weight], atol=1e-6)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)
    other, _ = mix_and_smooth((images, labels), jnp.int32(1), KEY, Regularization(mixup=1.0, num_classes=3))
    assert not np.allclose(other, mixed)
    batch = images, labels
    assert mix_and_smooth(batch, jnp.int32(0), KEY, Regularization()) is batch


def test_loss_of_probabilities():
    logits, labels = jnp.array([[1.0, 2.0, 0.5], [0.0, 0.0, 3.0]]), jnp.array([1, 0])
    np.testing.assert_allclose(
        cross_entropy(logits, jax.nn.one_hot(labels, 3)), cross_entropy(logits, labels), rtol=1e-6
    )


def test_averages_follow_slowly():
    averages = {"a": jnp.array(0.0)}
    first = move_averages(averages, {"a": jnp.array(1.0)}, jnp.int32(0), 0.99)
    late = move_averages(averages, {"a": jnp.array(1.0)}, jnp.int32(10**6), 0.99)
    assert first["a"] == pytest.approx(0.9) and late["a"] == pytest.approx(0.01)


@pytest.mark.usefixtures("small")
def test_label_smoothing_changes_the_training_loss_only(tmp_path, plain):
    small_run(tmp_path, checkpoint_every_steps=2, optimizer__label_smoothing=0.5, num_epochs=1)
    assert rows(tmp_path)[0]["train_loss"] != rows(plain)[0]["train_loss"]
    assert rows(tmp_path)[0]["val_loss"] != rows(plain)[0]["val_loss"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("warmup_epochs", 0.99, "warmup_epochs is 0.99, which are all of the 8 steps of the run"),
        ("accumulate_steps", 9, "accumulate_steps is 9, and the run has 8 steps"),
    ],
)
def test_runs_that_are_too_short_for_their_recipe_are_refused(field, value, message):
    config = small_config(num_epochs=1)
    config.optimizer[field] = value
    with pytest.raises(UserError, match=message):
        make_optimizer_and_schedule(config, steps_per_epoch=8)
