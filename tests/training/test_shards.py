"""States that are divided among devices: the same numbers, a part of the memory on each device, runs that go on."""

import math
import re
from functools import partial
from typing import Literal

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from dctps_jax import DCTpSConv, DCTpSLinear
from dctps_jax.optimizers import make_optimizer
from dctps_jax.pruning import apply_masks, load_masks, prune
from dctps_jax.training.forms import to_compact, to_masked
from dctps_jax.training.placement import LEAST_DIVIDED, state_spec
from dctps_jax.training.state import create_state
from dctps_jax.training.step import train_step
from tests.distributed.processes import alone
from tests.killed_runs import run_until_killed
from tests.small_runs import STEPS_PER_EPOCH, arrays, placement_on, results, rows, small_run, steps

DEVICES = 8
SHAPE = (3, 3, 32, 64)  # of the only kernel that is large enough to be divided


class Network(nnx.Module):
    def __init__(self, offset=None):
        rngs = nnx.Rngs(0)
        self.conv1 = DCTpSConv(3, 32, (3, 3), use_bias=False, offset=offset, rngs=rngs)
        self.norm = nnx.BatchNorm(32, rngs=rngs)
        self.conv2 = DCTpSConv(32, 64, (3, 3), use_bias=False, offset=offset, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.fc = DCTpSLinear(64, 10, use_bias=False, offset=offset, rngs=rngs)
        self.dctps_layer_order = ("conv1", "conv2", "fc")

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv1(x)))
        return self.fc(self.drop(nnx.relu(self.conv2(x)).mean((1, 2))))


def adam(**options):
    return make_optimizer("adam", 0.01, momentum=0.9, weight_decay=5e-4, fixup=False, **options)


def batch_of(seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(16, 8, 8, 3)).astype(np.float32), rng.integers(0, 10, 16, dtype=np.int32)


class Training:
    """Steps of a network whose state is divided into `shards`."""

    def __init__(
        self, shards, form: Literal["masked", "compact"] = "masked", density=0.5, optimizer=None, ema_decay=0.0
    ):
        model, optimizer = Network(), optimizer or adam()
        if density < 1:
            apply_masks(model, prune(model, "epl", density, key=jax.random.key(0)), form)
        self.placement = placement_on(DEVICES, shards)
        self.graphs, self.state = create_state(
            model, optimizer, self.placement.axis_name, ema_decay > 0, self.placement.put
        )
        step = partial(
            train_step,
            graph=self.graphs.train,
            optimizer=optimizer,
            mesh=self.placement.replicated.mesh,
            random=self.graphs.random,
            ema_decay=ema_decay,
        )
        self.program = self.placement.compile(step, (self.state, self.put(batch_of(0))), (0,))

    def put(self, batch):
        return jax.device_put(batch, self.placement.batch)

    def losses(self, num_steps):
        losses = []
        for number in range(num_steps):
            self.state, metrics = self.program(self.state, self.put(batch_of(number)))
            losses.append(float(metrics["loss"]))
        return losses


def assert_close(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * max(1e-6, float(np.abs(other).max())))


@pytest.mark.parametrize("density", [0.5, 1.0])
def test_ten_steps_equal_those_of_a_state_that_is_not_divided(density):
    whole, divided = Training(1, density=density), Training(4, density=density)
    expected = whole.losses(10)
    assert expected[-1] != expected[0]
    np.testing.assert_allclose(divided.losses(10), expected, rtol=1e-5)
    # Adam divides small gradients by their size: its weights differ by more than its gradients do.
    for one, other in zip(jax.tree.leaves(divided.state.params), jax.tree.leaves(whole.state.params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-5)
    assert_close(divided.state.batch_stats, whole.state.batch_stats)


@pytest.mark.parametrize("shards", [2, 8])
def test_plain_descent_equals_to_rounding(shards):
    whole, divided = (Training(number, optimizer=optax.sgd(0.1, momentum=0.9), ema_decay=0.9) for number in (1, shards))
    np.testing.assert_allclose(divided.losses(10), whole.losses(10), rtol=1e-5)
    assert_close(divided.state, whole.state)


def test_what_an_optimiser_does_with_all_gradients_together_is_the_same():
    optimizer = adam(clip_norm=0.5, accumulate_steps=2)
    divided, whole = (Training(shards, optimizer=optimizer).losses(6) for shards in (4, 1))
    np.testing.assert_allclose(divided, whole, rtol=1e-5)


def sizes_on_a_device(tree):
    """The numbers of the arrays of a tree, and of what one device holds of them."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim]
    return [leaf.size for leaf in leaves], [leaf.addressable_shards[0].data.size for leaf in leaves]


@pytest.mark.parametrize("has_trained", [False, True])
def test_each_device_holds_a_part_of_the_large_arrays(has_trained):
    training = Training(4, ema_decay=0.9)
    if has_trained:
        training.losses(2)
    state, moments = training.state, training.state.opt_state[1]
    large = math.prod(SHAPE)
    for tree in (state.params, moments.mu, moments.nu, state.averages["params"], state.supports):
        sizes, here = sizes_on_a_device(tree)
        assert sizes.count(large) == 1 and max(size for size in sizes if size != large) < LEAST_DIVIDED
        assert here == [size // 4 if size == large else size for size in sizes]
        kernel = next(leaf for leaf in jax.tree.leaves(tree) if leaf.size == large)
        assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 3, 32, 16)}
    # Of the float32 kernel, its two moments and its average, and of the mask, three quarters are elsewhere.
    saved = large * (4 * 4 + 1) * 3 // 4
    bytes_of = [Training(shards, ema_decay=0.9).program.memory_analysis() for shards in (1, 4)]
    assert bytes_of[0].argument_size_in_bytes - bytes_of[1].argument_size_in_bytes == saved


def exchanges(program):
    """(kind, shape) of the arrays that the program's collectives give."""
    found = []
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    for line in program.as_text().splitlines():
        if match := re.search(rf"= (.*?) ({kinds})(-start)?\(", line):
            for dtype, shape in re.findall(r"([a-z]+\d*)\[([\d,]*)\]", match[1]):
                found.append((match[2], dtype, tuple(int(size) for size in shape.split(",") if size)))
    return found


def test_kernels_are_collected_and_their_gradients_divided():
    found = exchanges(Training(4).program)
    part = (*SHAPE[:-1], SHAPE[-1] // 4)
    large = [exchange for exchange in found if math.prod(exchange[2]) >= math.prod(part)]
    assert sorted(large) == [
        ("all-gather", "f32", SHAPE),
        ("all-gather", "pred", SHAPE),
        ("all-reduce", "f32", part),
        ("reduce-scatter", "f32", part),
    ]
    assert {kind for kind, *_ in exchanges(Training(1).program)} == {"all-reduce"}


def test_compact_values_stay_whole():
    training = Training(4, "compact", 0.1)
    assert {kind for kind, *_ in exchanges(training.program)} == {"all-reduce"}
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(training.state))


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((3, 3, 64, 64), (None, None, "shards")),
        ((512, 1000), (None, "shards")),
        ((512, 1001), ("shards",)),
        ((10, 10_001), ()),
        ((127, 129), ()),
        ((100_000,), ()),
        ((), ()),
    ],
)
def test_the_largest_dimension_that_can_be_divided_is(shape, spec):
    assert state_spec(shape, placement_on(8, 4).replicated.mesh) == jax.P(*spec)
    assert state_spec(shape, placement_on(8).replicated.mesh) == jax.P()


def test_a_state_on_the_host_changes_its_form_there():
    training = Training(4)
    host = training.placement.for_files(training.state)
    compact = to_compact(host, training.graphs.counts)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves((compact.params, compact.opt_state)))
    expected = to_compact(training.state, training.graphs.counts)
    jax.tree.map(np.testing.assert_array_equal, compact, jax.device_get(expected))
    jax.tree.map(np.testing.assert_array_equal, to_masked(compact, training.graphs.shapes), host)


# Runs. LeNet-5 on digits has one kernel that is large enough, [400, 120].

FORM = {"execution__form": "masked", "model__offset": None, "pruning__density": 0.6}


@pytest.fixture
def all_devices(small, monkeypatch):
    monkeypatch.setattr("dctps_jax.ops.target.training_devices", jax.devices)


@pytest.fixture(scope="module")
def whole_run(small, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dctps_jax.ops.target.training_devices", jax.devices)
        workdir = tmp_path_factory.mktemp("whole")
        small_run(workdir, eval_batch_size=40, **FORM)
    return workdir


def assert_runs_equal(workdir, expected):
    assert [row["step"] for row in rows(workdir)] == [row["step"] for row in rows(expected)]
    for found, wanted in zip(rows(workdir), rows(expected), strict=True):
        assert found["train_loss"] == pytest.approx(wanted["train_loss"], rel=1e-5)
        assert found["val_loss"] == pytest.approx(wanted["val_loss"], rel=1e-5)
    assert results(workdir)["test_loss_final"] == pytest.approx(results(expected)["test_loss_final"], rel=1e-5)
    assert results(workdir)["storage_bytes"] == results(expected)["storage_bytes"]
    found, wanted = arrays(workdir), arrays(expected)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].shape == array.shape and found[name].dtype == array.dtype
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("steps_per_dispatch", [1, 5])
@pytest.mark.usefixtures("all_devices")
def test_a_run_equals_one_that_is_not_divided(tmp_path, whole_run, capsys, steps_per_dispatch):
    small_run(tmp_path, eval_batch_size=40, distributed__shards=4, steps_per_dispatch=steps_per_dispatch, **FORM)
    assert "8 cpu device(s), the state divided into 4 parts" in capsys.readouterr().out
    assert_runs_equal(tmp_path, whole_run)


@pytest.mark.parametrize(("before", "after"), [(4, 1), (1, 4), (8, 2)])
@pytest.mark.usefixtures("all_devices")
def test_a_run_goes_on_with_another_number_of_shards(tmp_path, whole_run, before, after):
    options = {"eval_batch_size": 40, "checkpoint_every_steps": 2} | FORM
    run_until_killed(tmp_path, 4, distributed__shards=before, **options)
    assert 0 < steps(tmp_path)[-1] < STEPS_PER_EPOCH  # in the first epoch
    small_run(tmp_path, distributed__shards=after, **options)
    assert_runs_equal(tmp_path, whole_run)


@pytest.mark.parametrize("method", ["rigl", "gmp"])
@pytest.mark.usefixtures("all_devices")
def test_weights_move_as_in_a_state_that_is_not_divided(tmp_path, method):
    options = {"eval_batch_size": 40, "sparse_training__method": method, "sparse_training__update_every": 3}
    options |= {"optimizer__name": "sgd", "optimizer__learning_rate": 0.01} | FORM
    for shards in (1, 4):
        small_run(tmp_path / str(shards), distributed__shards=shards, **options)
    initial, found, wanted = (
        load_masks(tmp_path / name) for name in ("4/masks_initial.npz", "4/masks.npz", "1/masks.npz")
    )
    assert all(np.array_equal(found[path], wanted[path]) for path in wanted)
    assert any(not np.array_equal(found[path], initial[path]) for path in found)
    assert_runs_equal(tmp_path / "4", tmp_path / "1")


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.usefixtures("all_devices")
def test_a_run_rewinds_to_a_state_that_is_then_divided(tmp_path, epoch):
    options = {"eval_batch_size": 40, "keep_epochs": (1,), "distributed__shards": 4} | FORM
    small_run(tmp_path / "source", **options | {"pruning__density": 1.0})
    options |= {"pruning__method": "from_run", "pruning__run": str(tmp_path / "source"), "pruning__rewind_epoch": epoch}
    for shards in (1, 4):
        small_run(tmp_path / str(shards), **options | {"distributed__shards": shards})
    assert_runs_equal(tmp_path / "4", tmp_path / "1")


def test_from_the_command_line(tmp_path):
    options = ("--config.execution.form=masked", "--config.model.offset=None", "--config.pruning.density=0.5")
    code, out, err = alone(tmp_path, *options, "--config.num_epochs=1", "--config.distributed.shards=4", devices=8)
    assert (code, err) == (0, "") and "8 cpu device(s), the state divided into 4 parts" in out
    code, out, err = alone(tmp_path / "refused", "--config.distributed.shards=3", devices=8)
    assert code == 2 and err.count("\n") == 1 and "config.distributed.shards is 3, but there are 8 devices" in err
    assert not (tmp_path / "refused").exists()
