"""RigL and SET: literal updates, what must never change, and the original's RigL where it is right."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from dctps_jax.models import create_model
from dctps_jax.optimizers import make_optimizer
from dctps_jax.pruning import apply_masks
from dctps_jax.pruning.dynamic import MovingSchedule, move_weights
from dctps_jax.torch_compat import load_state_dict
from dctps_jax.training.state import create_state, supports_by_path
from dctps_jax.training.step import mask_update_step, train_step
from tests import reference_data as reference

ENTRIES = {entry["id"]: entry for entry in reference.index("rigl_index")}


@pytest.mark.parametrize(
    ("num_drop", "new", "kept"),
    [
        (0, [1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0]),
        (1, [1, 0, 1, 0, 1, 0], [1, 0, 1, 0, 0, 0]),
        (2, [1, 0, 0, 0, 1, 1], [1, 0, 0, 0, 0, 0]),
        (3, [0, 0, 1, 0, 1, 1], [0, 0, 1, 0, 0, 0]),  # the third was dropped, and comes back by its growth
    ],
)
def test_a_literal_update(num_drop, new, kept):
    kernel = jnp.array([5.0, -1.0, 2.0, 0.0, 0.0, 0.0])
    mask = jnp.array([True, True, True, False, False, False])
    growth = jnp.array([0.1, 0.2, 3.0, 1.0, 9.0, 4.0]) if num_drop == 3 else jnp.array([0.1, 0.2, 0.3, 1.0, 9.0, 4.0])
    after, stays = move_weights(kernel, mask, growth, jnp.int32(num_drop))
    assert after.astype(int).tolist() == new
    assert stays.astype(int).tolist() == kept


def test_an_active_weight_of_zero_ranks_before_every_inactive_one():
    # The original ranks by magnitude over all positions, and may "keep" an inactive one at equal zeros.
    kernel = jnp.array([0.0, 0.0, 7.0, 0.0])
    mask = jnp.array([False, False, True, True])
    after, kept = move_weights(kernel, mask, jnp.array([9.0, 1.0, 0.0, 0.0]), jnp.int32(0))
    assert after.tolist() == kept.tolist() == mask.tolist()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), active=st.integers(0, 24), drop=st.integers(0, 24))
def test_an_update_keeps_the_count_and_drops_the_smallest(seed, active, drop):
    rng = np.random.default_rng(seed)
    drop = min(drop, active)
    mask = np.zeros(24, bool)
    mask[rng.permutation(24)[:active]] = True
    kernel = np.where(mask, rng.normal(size=24), 0).astype(np.float32)
    growth = rng.random(24).astype(np.float32)
    given = jnp.asarray(kernel), jnp.asarray(mask), jnp.asarray(growth), jnp.int32(drop)
    new, kept = (np.asarray(part) for part in move_weights(*given))
    assert new.sum() == active and not np.any(kept & ~mask) and not np.any(kept & ~new)
    gone = mask & ~new
    if gone.any() and kept.any():
        returned = kept & (np.abs(kernel) < np.abs(kernel[gone]).max())
        assert np.all(growth[returned] >= growth[gone].max()) if returned.any() else True
    grown = new & ~mask
    if grown.any():
        assert growth[grown].min() >= growth[~new].max()


def test_the_schedule_of_updates():
    schedule = MovingSchedule(update_every=5, end_step=20, drop_fraction=0.3)
    assert [step + 1 for step in range(30) if schedule.is_update(step)] == [5, 10, 15]
    for entry in ENTRIES.values():
        listed = entry["updates_f64"]
        schedule = MovingSchedule(entry["delta"], entry["T_end"], entry["alpha"])
        for update in listed:
            assert schedule.fraction(update["scheduler_step"] - 1) == pytest.approx(update["drop_fraction"], rel=1e-12)
    assert schedule.drop_counts(4, {"a": 100, "full": 50}, {"a": 1000, "full": 50}) == {"a": 25, "full": 0}


def start(entry, optimizer):
    stored = reference.arrays("rigl")
    prefix = f"{entry['id']}/"
    masks = reference.network_masks(stored[f"{prefix}mask_init"], entry["layers"])
    model = create_model(
        "lenet", num_classes=10, offset=reference.our_offset(entry["offset"]), init="zeros", rngs=nnx.Rngs(0)
    )
    apply_masks(model, masks)
    initial = {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
    state_dict = {}
    for name, key, kind, shape, axes, _ in reference.index("name_map")["maps"][f"lenet/{entry['offset']}"]:
        if kind != "offset":
            value = reference.filled_up(initial, "init/", key, masks).astype(np.float64)
            state_dict[name] = value.transpose(np.argsort(axes)) if axes else value.reshape(shape)
    load_state_dict(model, state_dict)
    return initial, masks, *create_state(model, optimizer)


def drops_of(state, drop_counts):
    return {path: jnp.int32(drop_counts[path]) for path in supports_by_path(state.supports)}


@pytest.mark.usefixtures("original_offset")
# The original leaves Adam's moments of dropped weights standing: its third update sees a regrown weight that moved.
@pytest.mark.parametrize(("identity", "updates"), [(name, 2 if name.endswith("adam") else 3) for name in ENTRIES])
def test_rigl_equals_the_original_where_it_is_right(identity, updates):
    entry = ENTRIES[identity]
    images = reference.normalised(reference.arrays("images")["x"]).astype(np.float64)
    labels = reference.arrays("images")["y"]
    with jax.enable_x64(True):
        optimizer = make_optimizer(
            entry["optimiser"], entry["lr"], momentum=0.9, weight_decay=entry["weight_decay"], fixup=False
        )
        initial, masks, graphs, state = start(entry, optimizer)
        schedule = MovingSchedule(entry["delta"], entry["T_end"], entry["alpha"])
        counts = {path: int(mask.sum()) for path, mask in masks.items()}
        sizes = {path: mask.size for path, mask in masks.items()}
        step = jax.jit(lambda state, batch: train_step(state, batch, graph=graphs.train, optimizer=optimizer))
        update = jax.jit(lambda state, batch, drops: mask_update_step(state, batch, drops, None, graphs=graphs))
        losses, done = [], 0
        for number, (first, last) in enumerate(entry["batch_rows"]):
            batch = jnp.asarray(images[first:last]), jnp.asarray(labels[first:last])
            if schedule.is_update(number):
                drops = drops_of(state, schedule.drop_counts(number, counts, sizes))
                state, metrics, _ = update(state, batch, drops)
                done += 1
                if done <= updates:
                    expected = reference.network_masks(initial[f"mask_after_update{done}_f64"], entry["layers"])
                    for path, mask in supports_by_path(state.supports).items():
                        np.testing.assert_array_equal(mask, expected[path], err_msg=f"update {done} {path}")
            else:
                state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
            if done == updates and updates < 3:
                break
    np.testing.assert_allclose(losses, initial["loss_f64"][: len(losses)], rtol=1e-9)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("method", ["rigl", "set"])
@pytest.mark.parametrize("offset", [None, "dct"])
def test_regrown_weights_and_moments_start_at_zero(name, method, offset):
    model = create_model("lenet", num_classes=10, offset=offset, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    shapes = {"convs.0": (5, 5, 3, 6), "convs.3": (5, 5, 6, 16), "fcs.0": (120, 82)}
    apply_masks(model, {path: rng.random(shape) < 0.3 for path, shape in shapes.items()})
    optimizer = make_optimizer(name, optax.constant_schedule(0.01), momentum=0.9, weight_decay=5e-4, fixup=False)
    graphs, state = create_state(model, optimizer)
    batch = jnp.asarray(rng.normal(size=(8, 32, 32, 3)), jnp.float32), jnp.arange(8)
    step = jax.jit(lambda state: train_step(state, batch, graph=graphs.train, optimizer=optimizer)[0])
    for _ in range(3):
        state = step(state)
    counts = {path: int(mask.sum()) for path, mask in supports_by_path(state.supports).items()}
    drops = drops_of(state, {path: count // 4 for path, count in counts.items()})
    key = jax.random.key(3) if method == "set" else None
    after, _, moved = mask_update_step(state, batch, drops, key, graphs=graphs)
    before_masks, after_masks = supports_by_path(state.supports), supports_by_path(after.supports)
    assert {path: int(mask.sum()) for path, mask in after_masks.items()} == counts
    for path, count in moved.items():
        assert int(count) == int((after_masks[path] & ~before_masks[path]).sum()) > 0
    # The layers without a mask are left alone; in the others whatever was not active before is zero everywhere.
    kernels = [("convs", 0), ("convs", 3), ("fcs", 0)]
    for path, place in zip(shapes, kernels, strict=True):
        was_active = np.asarray(before_masks[path] & after_masks[path])
        trees = [after.params, *_moment_trees(after.opt_state)]
        for tree in trees:
            values = np.asarray(tree[place[0]][place[1]]["kernel"])
            assert not values[~was_active].any()
            assert values[was_active].any()
    np.testing.assert_array_equal(after.params["fcs"][2]["kernel"], state.params["fcs"][2]["kernel"])
    assert int(after.step) == int(state.step) + 1
    later = step(after)
    for path, mask in supports_by_path(later.supports).items():
        first, second = kernels[list(shapes).index(path)]
        assert not np.asarray(later.params[first][second]["kernel"])[~np.asarray(mask)].any()


def _moment_trees(opt_state):
    found = []
    for node in jax.tree.leaves(
        opt_state, is_leaf=lambda node: isinstance(node, optax.ScaleByAdamState | optax.TraceState)
    ):
        if isinstance(node, optax.ScaleByAdamState):
            found += [node.mu, node.nu]
        elif isinstance(node, optax.TraceState):
            found.append(node.trace)
    assert found
    return found


def test_updates_do_not_delay_the_learning_rate():
    optimizer = make_optimizer(
        "adam", optax.piecewise_constant_schedule(1.0, {2: 0.1}), momentum=0, weight_decay=0, fixup=False
    )
    model = create_model("lenet", num_classes=10, offset="dct", rngs=nnx.Rngs(0))
    apply_masks(model, {"fcs.2": np.arange(820).reshape(82, 10) % 3 == 0})
    graphs, state = create_state(model, optimizer)
    batch = jnp.ones((4, 32, 32, 3)), jnp.arange(4)
    drops = drops_of(state, {"fcs.2": 5})
    state = mask_update_step(state, batch, drops, None, graphs=graphs)[0]
    kinds = (optax.ScaleByScheduleState, optax.ScaleByAdamState)
    nodes = jax.tree.leaves(state.opt_state, is_leaf=lambda node: isinstance(node, kinds))
    schedules, adam = ([np.asarray(node.count) for node in nodes if isinstance(node, kind)] for kind in kinds)
    assert schedules == [1] and adam == [0]
