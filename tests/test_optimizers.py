"""The optimisers: steps by hand, Fixup's slower group, the learning rate step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dctps_jax.config import check_config
from dctps_jax.defaults import get_config
from dctps_jax.errors import UserError
from dctps_jax.models import create_model
from dctps_jax.optimizers import OPTIMIZERS, SCHEDULES, learning_rate_schedule, make_optimizer
from dctps_jax.training.from_config import make_optimizer_and_schedule
from tests import reference_data as reference

PARAMS = {"layer": {"kernel": jnp.array([2.0, -1.0]), "alpha": jnp.array(1.5)}, "bn": {"scale": jnp.array([4.0])}}
GRADS = {"layer": {"kernel": jnp.array([0.5, 0.25]), "alpha": jnp.array(-1.0)}, "bn": {"scale": jnp.array([0.125])}}


def make(name, rate: float | optax.Schedule = 0.1, momentum=0.9, weight_decay=0.01, fixup=False):
    return make_optimizer(name, rate, momentum=momentum, weight_decay=weight_decay, fixup=fixup)


def steps(optimizer, params, gradients):
    state = optimizer.init(params)
    for grads in gradients:
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def rates(schedule, steps):
    return [np.asarray(schedule(step)).item() for step in steps]


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64)


P, G = flat(PARAMS), flat(GRADS)


def test_sgd_two_steps_by_hand():
    first = G + 0.01 * P  # L2 on every parameter, then momentum without dampening
    one = P - 0.1 * first
    np.testing.assert_allclose(flat(steps(make("sgd"), PARAMS, [GRADS])), one, rtol=1e-6)
    second = 0.9 * first + (-2 * G + 0.01 * one)
    opposite = jax.tree.map(lambda grad: -2 * grad, GRADS)
    np.testing.assert_allclose(flat(steps(make("sgd"), PARAMS, [GRADS, opposite])), one - 0.1 * second, rtol=1e-6)


def adam(grads, decay, coupled, rate=0.1):
    """PyTorch's Adam and AdamW, written out."""
    params, m, v = P, 0.0, 0.0
    for number, grad in enumerate(grads, 1):
        grad = grad + decay * params if coupled else grad
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        step = (m / (1 - 0.9**number)) / (np.sqrt(v / (1 - 0.999**number)) + 1e-8)
        params = params - rate * (step if coupled else step + decay * params)
    return params


@pytest.mark.parametrize(("name", "coupled"), [("adam", True), ("adamw", False)])
@pytest.mark.parametrize("number", [1, 2])
def test_adam_by_hand(name, coupled, number):
    gradients = [GRADS, jax.tree.map(lambda grad: -2 * grad, GRADS)][:number]
    found = flat(steps(make(name, weight_decay=0.3), PARAMS, gradients))
    np.testing.assert_allclose(found, adam([G, -2 * G][:number], 0.3, coupled), rtol=1e-5)
    assert not np.allclose(found, adam([G, -2 * G][:number], 0.3, not coupled), rtol=1e-3)


def test_adam_divides_by_the_root_plus_epsilon():
    tiny = jax.tree.map(lambda grad: grad * 1e-8, GRADS)
    np.testing.assert_allclose(
        flat(steps(make("adam", weight_decay=0.0), PARAMS, [tiny])), adam([1e-8 * G], 0.0, True), rtol=1e-5
    )


def test_no_decay_no_momentum_is_the_plain_gradient():
    found = steps(make("sgd", momentum=0.0, weight_decay=0.0), PARAMS, [GRADS, GRADS])
    np.testing.assert_allclose(flat(found), P - 0.2 * G, rtol=1e-6)


def slow_and_fast(name, offset):
    """Return which parameters of a small model the ``fixup`` flag slows down, and that it slows them tenfold."""
    model = nnx.eval_shape(lambda: create_model(name, num_classes=3, offset=offset, rngs=nnx.Rngs(0)))
    shapes = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    params = jax.tree.map(lambda leaf: jnp.asarray(np.ones(leaf.shape[-1:], np.float32)), shapes)
    moved = [
        jax.tree_util.tree_leaves_with_path(steps(make("sgd", weight_decay=0.5, fixup=fixup), params, [params]))
        for fixup in (False, True)
    ]
    slow, fast = set(), set()
    for (path, plain), (_, fixup) in zip(*moved, strict=True):
        name = ".".join(str(key.key) for key in path)
        ratio = float((1 - fixup).ravel()[0] / (1 - plain).ravel()[0])
        assert ratio == pytest.approx(0.1, rel=1e-4) or ratio == pytest.approx(1), name
        (fast if ratio > 0.5 else slow).add(name)
    return slow, fast


@pytest.mark.parametrize("offset", ["None", "dct"])
def test_fixups_groups_are_the_originals(offset):
    slow, fast = slow_and_fast("fixup_resnet20", reference.our_offset(offset))
    keys = [
        key for _, key, kind, *_ in reference.index("name_map")["maps"][f"fixup_resnet20/{offset}"] if kind != "offset"
    ]
    dotted = {key.replace("/", ".") for key in keys}
    assert slow | fast == dotted
    assert slow == {key for key in dotted if "bias" in key or key.endswith(".scale")} and len(slow) == 48
    assert all(key.endswith((".kernel", ".alpha")) for key in fast)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fixup_slows_the_step_after_momentum_and_moments(name):
    params, grads = ({"bias": tree["layer"]["kernel"], "kernel": tree["layer"]["kernel"]} for tree in (PARAMS, GRADS))
    found = steps(make(name, weight_decay=0.0, fixup=True), params, [grads, grads])
    moved = jax.tree.map(lambda end, start: np.asarray(end - start), found, params)
    np.testing.assert_allclose(moved["bias"], 0.1 * moved["kernel"], rtol=1e-4, atol=1e-7)  # of numbers around 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rate_schedules_count_the_optimisers_steps(name):
    schedule = learning_rate_schedule(0.5, (1,), 0.0, steps_per_epoch=2)
    params = steps(make(name, schedule, weight_decay=0.0), PARAMS, [GRADS] * 2)
    assert np.all(flat(params) != P)
    np.testing.assert_array_equal(
        flat(steps(make(name, schedule, weight_decay=0.0), PARAMS, [GRADS] * 5)), flat(params)
    )


def test_rate_drops_at_the_end_of_milestone_epochs():
    schedule = learning_rate_schedule(0.1, (2, 3), 0.1, steps_per_epoch=5)
    np.testing.assert_allclose(
        rates(schedule, map(jnp.asarray, range(20))), [0.1] * 10 + [0.01] * 5 + [0.001] * 5, rtol=1e-6
    )
    paper = learning_rate_schedule(0.1, (120, 160), 0.1, steps_per_epoch=352)
    steps = (0, 120 * 352 - 1, 120 * 352, 160 * 352 - 1, 160 * 352)
    assert rates(paper, steps) == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001], rel=1e-6)


def test_the_original_drops_one_epoch_earlier():
    for case in reference.index("schedules")["lr_schedule_reference_order"]:
        schedule = learning_rate_schedule(case["init_lr"], tuple(case["milestones"]), case["gamma"], steps_per_epoch=1)
        for run in case["runs"]:
            epochs = [epoch for epoch in (run["last_epoch"], run["last_epoch"] + 1) if epoch < case["epochs"]]
            assert rates(schedule, epochs) == pytest.approx([run["lr"]] * len(epochs), rel=1e-5)


def test_constant_rate():
    schedule = learning_rate_schedule(0.25, (), 0.1, 10)
    assert rates(schedule, (0, 10**6)) == [0.25, 0.25]


def test_unknown_name():
    with pytest.raises(ValueError, match="no optimizer 'adamm'; choose one of: sgd, "):
        make("adamm")


def test_a_new_schedule_is_one_function_and_one_line(monkeypatch):
    def cosine(settings, steps_per_epoch, num_epochs):
        return optax.cosine_decay_schedule(settings.learning_rate, num_epochs * steps_per_epoch)

    monkeypatch.setitem(SCHEDULES, "cosine", cosine)
    config = get_config()
    config.num_epochs = 3
    config.optimizer.schedule = "cosine"
    check_config(config, check_devices=False)
    _, schedule = make_optimizer_and_schedule(config, steps_per_epoch=4)
    np.testing.assert_allclose([schedule(step) for step in (0, 6, 12)], [1e-3, 5e-4, 0], atol=1e-9)
    config.optimizer.schedule = "cosin"
    with pytest.raises(UserError, match=r"config\.optimizer\.schedule is 'cosin' \(did you mean 'cosine'\?\)"):
        check_config(config, check_devices=False)
