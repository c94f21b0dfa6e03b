"""The compiled programs and the loop: same numbers on any number of devices, no transfer between steps."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dctps_jax import pruning
from dctps_jax.data.batches import Examples, Normalization
from dctps_jax.ops.target import tracing_for
from dctps_jax.training import loop
from dctps_jax.training.signals import NonFiniteLoss
from dctps_jax.training.sparse_model import build_model
from dctps_jax.training.state import create_state
from dctps_jax.training.step import zero_sums
from dctps_jax.training.step_spec import StepSpec, dispatches
from tests.small_runs import make_optimizer_of, placement_on, small_config, small_digits


def make_spec(**options):
    spec = StepSpec(
        batch_size=32,
        eval_batch_size=20,
        steps_per_epoch=5,
        steps_per_dispatch=1,
        normalization=Normalization((0.3, 0.3, 0.3), (0.4, 0.4, 0.4)),
        augmented=True,
        seed=0,
    )
    return spec._replace(**options)


class Run:
    """A network in training on the first `num_devices` devices."""

    def __init__(self, num_devices=1, learning_rate=1e-3, **options):
        config = small_config(model__dtype="float32")
        digits = small_digits()
        model = build_model(config, 10, 32)
        masks = pruning.prune(model, "epl", 0.05, key=jax.random.key(0))
        pruning.apply_masks(model, masks)
        optimizer = make_optimizer_of(config, learning_rate)
        self.spec = make_spec(**options)
        self.placement = placement_on(num_devices)
        graphs, state = create_state(model, optimizer, self.placement.axis_name)
        self.state, self.sums = self.placement.put(state), self.placement.put(zero_sums())
        split = Examples(digits.train_images, digits.train_labels)
        self.train = self.placement.put(Examples(split.images[:180], split.labels[:180]).in_rows())
        test = self.placement.put(split.in_rows())
        self.held_out = test, self.placement.put(np.arange(180, len(split.labels), dtype=np.int32))
        self.programs = loop.compile_programs(
            loop.Setup(self.spec, graphs, optimizer, self.placement),
            self.state,
            self.sums,
            self.train,
            self.epoch_of(0),
            [self.held_out],
        )
        self.step = 0

    def epoch_of(self, number):
        rows = np.arange(len(self.train.labels), dtype=np.int32)
        return self.placement.put(loop.epoch_of(number, self.spec, rows))

    def epoch(self, log_every_steps=1000, order=None):
        number = self.step // self.spec.steps_per_epoch
        if order is None:
            order = self.epoch_of(number)
        dispatches = loop.run_epoch(self.programs, self.state, self.sums, self.train, order, self.step, log_every_steps)
        for self.step, self.state, self.sums in dispatches:
            yield self.step

    def losses(self):
        """The sum of the losses of each dispatch of two epochs."""
        length, found = self.spec.steps_per_dispatch, []
        for step in range(0, 2 * self.spec.steps_per_epoch, length):
            order = self.epoch_of(step // self.spec.steps_per_epoch)
            sums = self.placement.put(zero_sums())
            self.state, sums = self.programs.step_programs[length](self.state, sums, self.train, order)
            found.append(float(sums.loss))
        return np.array(found)


@cache
def losses_on_one_device():
    return Run().losses()


@pytest.mark.parametrize("num_devices", [2, 4])
def test_devices_give_the_same_losses(num_devices):
    run = Run(num_devices)
    losses, expected = run.losses(), losses_on_one_device()
    assert len(losses) == 10 and expected[-1] < 0.9 * expected[0]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    assert len(run.state.step.devices()) == num_devices


@pytest.mark.parametrize("num_devices", [1, 2, 4])
def test_placed_arrays_are_copies(num_devices):
    source = zero_sums()
    placed = placement_on(num_devices).put(source)
    assert len(placed.loss.devices()) == num_devices
    jax.tree.map(lambda array: array.delete(), placed)  # as donation does
    assert int(source.images) == 0


def test_steps_per_dispatch_does_not_change_the_losses():
    together = Run(steps_per_dispatch=5)
    np.testing.assert_allclose(together.losses(), losses_on_one_device().reshape(2, 5).sum(1), rtol=1e-5)
    assert int(together.state.step) == 10


def test_hot_loop_transfers_nothing():
    run = Run()
    for _ in run.epoch():  # the first one may warm up
        pass
    order = run.epoch_of(1)
    with jax.transfer_guard("disallow"):
        for _ in run.epoch(order=order):
            pass
    assert run.step == 10
    # The guard of the loop itself is armed: an order on the host would have to be transferred.
    with pytest.raises(Exception, match=r"(?i)transfer"):
        list(run.epoch(order=order._replace(rows=np.arange(180, dtype=np.int32))))


def test_a_program_is_traced_for_the_platform_that_is_named(monkeypatch):
    run = Run()
    for question in ("default_backend", "devices", "local_devices", "device_count"):
        monkeypatch.setattr(jax, question, None)

    def lowered(platform):
        take_step = partial(loop.take_steps, num_steps=1, setup=run.programs.setup)
        with tracing_for(platform):
            traced = jax.jit(take_step).trace(run.state, run.sums, run.train, run.epoch_of(0))
        return traced.lower(lowering_platforms=(platform,)).as_text()

    # Only a CPU computes four columns of few channels at a time.
    assert "tensor<5x8x3x24xf32>" in lowered("cpu") and "tensor<5x8x3x24xf32>" not in lowered("tpu")


@given(st.integers(1, 400), st.integers(1, 60), st.data())
def test_dispatches_fill_the_epoch_from_any_position(steps_per_epoch, steps_per_dispatch, data):
    spec = make_spec(steps_per_epoch=steps_per_epoch, steps_per_dispatch=steps_per_dispatch)

    def lengths_from(position):
        lengths, updates = zip(*dispatches(steps_per_epoch + position, spec), strict=True)
        assert not any(updates)
        return list(lengths)

    whole = lengths_from(0)
    assert sum(whole) == steps_per_epoch
    boundaries = np.cumsum([0, *whole])
    number = data.draw(st.integers(0, len(whole) - 1))
    # From a boundary, where checkpoints are written, the same programs follow as without the stop.
    assert lengths_from(int(boundaries[number])) == whole[number:]
    anywhere = data.draw(st.integers(0, steps_per_epoch - 1))
    assert sum(lengths_from(anywhere)) == steps_per_epoch - anywhere
    assert max(whole) <= steps_per_dispatch and len(set(whole)) <= 2


def test_evaluation_leaves_the_state_and_counts_a_partial_batch():
    run = Run()
    list(run.epoch())
    before = jax.tree.map(np.array, run.state)
    sums = run.programs.evaluate(run.state, *run.held_out)
    assert int(sums.images) == 20
    smaller = Run(eval_batch_size=7)
    other = smaller.programs.evaluate(smaller.placement.put(before), *smaller.held_out)
    assert loop.means(other)[1] == loop.means(sums)[1] and int(other.images) == 20
    np.testing.assert_allclose(loop.means(other)[0], loop.means(sums)[0], rtol=1e-6)
    chex.assert_trees_all_equal(before, run.state)
    list(run.epoch())  # and the state is still there to train on


def test_bad_loss_is_found_at_the_next_look():
    run = Run(learning_rate=1e38)
    seen = []
    with pytest.raises(NonFiniteLoss, match="at step 1;"):
        for step in run.epoch(log_every_steps=3):
            seen.append(step)
    assert seen == [1, 2]  # looked at after step 1, and after every third one


def test_check_finite():
    loop.check_finite(zero_sums())
    with pytest.raises(NonFiniteLoss, match="at step 0;"):
        loop.check_finite(zero_sums()._replace(bad_step=jnp.asarray(0)))
