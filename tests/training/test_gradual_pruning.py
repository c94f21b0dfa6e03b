"""Gradual magnitude pruning: the schedule of Zhu & Gupta (2017), what an update removes, and what a run says of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dctps_jax.errors import UserError
from dctps_jax.export import export_run, load_exported
from dctps_jax.models import create_model, prunable_layers
from dctps_jax.pruning import allocate, apply_masks, load_masks
from dctps_jax.pruning.dynamic import UPDATE_SCHEDULES, PruningSchedule, largest_weights
from dctps_jax.reports.records import read_records
from dctps_jax.training.mask_updates import MASK_UPDATES, UpdateSettings
from dctps_jax.training.state import create_state, supports_by_path
from dctps_jax.training.step import train_step
from tests.killed_runs import run_through_kills
from tests.small_runs import STEPS_PER_EPOCH, arrays, assert_same_end, results, rows, small_run

GMP = {
    "sparse_training__method": "gmp",
    "sparse_training__update_every": 2,
    "sparse_training__begin_fraction": 0.1,
    "sparse_training__stop_fraction": 0.6,
    "num_epochs": 4,
}


def density_of(schedule, step, first, last):
    """The formula of the paper, of sparsities: s_f + (s_i - s_f) (1 - (t - t0) / (n Δt))^3."""
    begin, span = schedule.begin_step, schedule.num_updates * schedule.update_every
    steps = begin + (min(max(step, begin), begin + span) - begin) // schedule.update_every * schedule.update_every
    s_i, s_f = 1 - first, 1 - last
    return 1 - (s_f + (s_i - s_f) * (1 - (steps - begin) / span) ** 3)


@pytest.mark.parametrize("schedule", [PruningSchedule(5, 10, 4), PruningSchedule(1, 0, 30), PruningSchedule(7, 3, 1)])
def test_the_schedule_is_that_of_the_paper(schedule):
    first, last = {"a": 1000, "b": 100}, {"a": 50, "b": 100}
    steps = range(60)
    updates = [step + 1 for step in steps if schedule.is_update(step)]
    assert updates == [schedule.begin_step + n * schedule.update_every for n in range(1, schedule.num_updates + 1)]
    for step in steps:
        counts = schedule.counts_at(step, first, last)
        assert counts["a"] == pytest.approx(1000 * density_of(schedule, step, 1, 0.05), abs=0.51)
        assert counts["b"] == 100
        if not schedule.is_update(step):
            assert schedule.counts_at(step + 1, first, last) == counts
        else:
            assert schedule.numbers_for(step, first, last, first) == schedule.counts_at(step + 1, first, last)
    assert schedule.counts_at(59, first, last) == last


def test_every_method_has_a_schedule_and_an_update():
    assert MASK_UPDATES.keys() == UPDATE_SCHEDULES.keys()


def test_the_largest_active_weights_stay():
    kernel = jnp.array([[5.0, -6.0], [0.0, -1.0], [9.0, 1.0]])
    mask = jnp.array([[True, True], [True, True], [False, True]])
    assert largest_weights(kernel, mask, jnp.int32(3)).tolist() == [[True, True], [False, True], [False, False]]
    assert largest_weights(kernel, mask, jnp.int32(5)).tolist() == mask.tolist()
    assert not largest_weights(kernel, mask, jnp.int32(0)).any()


@pytest.mark.parametrize("name", ["adam", "sgd"])
@pytest.mark.parametrize("offset", [None, "dct"])
def test_an_update_is_a_step_and_then_prunes_weights_moments_and_averages(name, offset):
    model = create_model("lenet", num_classes=10, offset=offset, rngs=nnx.Rngs(0))
    apply_masks(model, {path: np.ones(layer.kernel_shape, bool) for path, layer in prunable_layers(model).items()})
    optimizer = optax.adam(0.01) if name == "adam" else optax.sgd(0.01, momentum=0.9)
    graphs, state = create_state(model, optimizer, has_averages=True)
    batch = jax.random.normal(jax.random.key(0), (8, 32, 32, 3)), jnp.arange(8)
    num_keep = {path: jnp.int32(count // 3) for path, count in graphs.counts.items()}
    stepped, metrics = train_step(state, batch, graph=graphs.train, optimizer=optimizer, ema_decay=0.9)
    settings = UpdateSettings(graphs, optimizer, jax.random.key(0), ema_decay=0.9)
    after, pruned_metrics, _ = MASK_UPDATES["gmp"](state, batch, num_keep, settings)
    assert float(metrics["loss"]) == float(pruned_metrics["loss"]) and int(after.step) == 1
    for path, mask in supports_by_path(after.supports).items():
        first, second = path.split(".")
        trees = [(stepped.params, after.params), (stepped.averages["params"], after.averages["params"])]
        trees += zip(moments_of(stepped.opt_state), moments_of(after.opt_state), strict=True)
        for before, now in trees:
            before, now = (np.asarray(tree[first][int(second)]["kernel"]) for tree in (before, now))
            np.testing.assert_array_equal(now, np.where(mask, before, 0))
        kernel = np.abs(stepped.params[first][int(second)]["kernel"])
        assert int(mask.sum()) == num_keep[path] and kernel[mask].min() >= kernel[~mask].max()


def moments_of(opt_state):
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, optax.ScaleByAdamState | optax.TraceState))
    nodes = [node for node in nodes if isinstance(node, optax.ScaleByAdamState | optax.TraceState)]
    return [tree for node in nodes for tree in ((node.mu, node.nu) if hasattr(node, "mu") else (node.trace,))]


@pytest.fixture(scope="module")
def gmp(small, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("gmp")
    small_run(workdir, **GMP)
    return workdir


def test_a_run_starts_dense_and_ends_at_its_density(gmp):
    before, after = load_masks(gmp / "masks_initial.npz"), load_masks(gmp / "masks.npz")
    assert all(mask.all() for mask in before.values())
    shapes = {path: mask.shape for path, mask in after.items()}
    counts, total = allocate(shapes, 0.05, "epl"), sum(mask.size for mask in after.values())
    assert {path: int(mask.sum()) for path, mask in after.items()} == counts
    # Twenty steps: pruning from step 2 to step 12, at steps 4, 6, 8, 10 and 12; epochs end at 5, 10, 15 and 20.
    schedule = PruningSchedule(update_every=2, begin_step=2, num_updates=5)
    first = {path: mask.size for path, mask in after.items()}
    expected = [sum(schedule.counts_at(step, first, counts).values()) / total for step in (5, 10, 15, 20)]
    assert [row["density"] for row in rows(gmp)] == expected
    assert expected[0] == pytest.approx(density_of(schedule, 5, 1, 0.05), abs=1e-4) and expected[2] == expected[3]
    assert not any("weights_moved" in row for row in rows(gmp))


def test_a_run_tells_the_truth_of_its_weights_operations_and_best_epoch(gmp):
    found, masks = results(gmp), load_masks(gmp / "masks.npz")
    kept, total = (sum(int(of(mask)) for mask in masks.values()) for of in (np.sum, np.size))
    assert found["density"] == kept / total and found["density_asked"] == 0.05
    assert found["layer_densities"] == {path: mask.mean() for path, mask in masks.items()}
    others = len(masks)  # an α of each layer
    assert found["trainable_parameters"] == kept + others
    assert found["density_of_all_parameters"] == pytest.approx((kept + others) / (total + others))
    dense, sparse = (found["flops"]["inference_of_an_image"][kind] for kind in ("dense", "sparse"))
    step_dense, step_sparse = (found["flops"]["training_step"][kind] for kind in ("dense", "sparse"))
    assert sparse < dense
    assert sparse / dense < step_sparse / step_dense < 1
    best = max(rows(gmp)[2:], key=lambda row: row["val_accuracy"])
    assert (found["best_epoch"], found["best_val_accuracy"]) == (best["epoch"], best["val_accuracy"])
    stored = arrays(gmp, "best")
    assert sum(array.size for name, array in stored.items() if name.endswith("/support")) == kept
    (record,) = read_records(gmp)
    assert record.results is not None


def test_a_run_is_exported(gmp, tmp_path):
    export_run(gmp, tmp_path / "file.safetensors")
    assert load_exported(tmp_path / "file.safetensors")(jnp.zeros((1, 32, 32, 3))).shape == (1, 10)


def test_a_run_that_is_killed_ends_the_same(gmp, tmp_path, small):
    more = {"steps_per_dispatch": 2, "checkpoint_every_steps": 1, "optimizer__ema_decay": 0.9}
    small_run(tmp_path / "plain", **GMP | more)
    run_through_kills(tmp_path / "killed", [3, 4, 7, 9], **GMP | more)
    assert_same_end(tmp_path / "killed", tmp_path / "plain")
    for name in ("masks.npz", "masks_initial.npz"):
        plain, killed = load_masks(tmp_path / "plain" / name), load_masks(tmp_path / "killed" / name)
        assert all(np.array_equal(plain[path], killed[path]) for path in plain)


def test_a_run_starts_at_another_density(tmp_path, small):
    small_run(tmp_path, **GMP | {"sparse_training__initial_density": 0.5, "model__offset": None}, pruning__method="erk")
    before, after = load_masks(tmp_path / "masks_initial.npz"), load_masks(tmp_path / "masks.npz")
    shapes = {path: mask.shape for path, mask in after.items()}
    for masks, density in ((before, 0.5), (after, 0.05)):
        assert {path: int(mask.sum()) for path, mask in masks.items()} == allocate(shapes, density, "erk")
    assert not any((after[path] & ~mask).any() for path, mask in before.items())


def test_a_run_cannot_grow_once_weights_are_pruned(gmp, small):
    with pytest.raises(UserError, match=r"is 'gmp', which .* another share of the weights to move or prune from step"):
        small_run(gmp, **GMP | {"num_epochs": 5})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pruning__method": "snip"}, "so the method only says how many each layer keeps: choose one of uniform"),
        ({"sparse_training__initial_density": 0.05}, "gmp prunes from the initial one to the other"),
        ({"sparse_training__begin_fraction": 0.6}, "pruning must begin before it stops"),
        ({"execution__form": "compact"}, "choose 'auto' or 'masked'"),
        ({"pruning__density": 1.0}, "no weights to move"),
        (
            {"sparse_training__update_every": 11},
            "update_every is 11, but pruning begins at step 2 and stops at step 12 of 20, so that no weight would ever",
        ),
    ],
)
def test_what_cannot_prune_is_refused(tmp_path, small, fields, message):
    assert STEPS_PER_EPOCH == 5
    with pytest.raises(UserError, match=message):
        small_run(tmp_path, **GMP | fields)
    assert not (tmp_path / "config.json").exists()
