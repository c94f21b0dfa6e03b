"""The compiled programs of a run and the loop that calls them: no host round trip per step."""

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from dctps_jax.data.batches import Normalization, Split, epoch_order, training_batch
from dctps_jax.training.step import NO_BAD_STEP, Graphs, Sums, TrainState, add_metrics, eval_step, train_step, zero_sums
from dctps_jax.training.stopping import NonFiniteLoss


class Plan(NamedTuple):
    """The fixed numbers of a run that its programs are compiled for."""

    batch_size: int
    eval_batch_size: int
    steps_per_epoch: int
    steps_per_dispatch: int
    normalization: Normalization
    augmented: bool
    seed: int


class Placement(NamedTuple):
    """Where arrays live: whole on every device, or split along the batch."""

    replicated: NamedSharding
    batch: NamedSharding

    def put(self, tree: Any) -> Any:
        """Place copies of ``tree`` whole on every device."""
        # device_put may alias the source, and a donated alias would delete the caller's array.
        return jax.device_put(tree, self.replicated, may_alias=False)


def place_on_all_devices() -> Placement:
    """Return the placement for data-parallel training over all devices of all hosts."""
    # Auto axes: with explicit ones, the gathers of the random crop would each need a sharding of their own.
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    return Placement(NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data")))


class Programs(NamedTuple):
    """Compiled programs. ``advance[n]`` takes n steps: (state, sums, train, order) → (state, sums)."""

    advance: dict[int, Callable[..., tuple[TrainState, Sums]]]
    evaluate: Callable[[TrainState, Split], Sums]
    compile_seconds: float


def advance(
    state: TrainState, sums: Sums, train: Split, order: jax.Array,
    *, num_steps: int, plan: Plan, graphs: Graphs, optimizer: optax.GradientTransformation, placement: Placement,
) -> tuple[TrainState, Sums]:  # fmt: skip
    """Take ``num_steps`` steps from where ``state`` stands; ``order`` is that of its epoch."""

    def one(carry: tuple[TrainState, Sums], _: None) -> tuple[tuple[TrainState, Sums], None]:
        state, sums = carry
        batch = training_batch(
            train, order, state.step, batch_size=plan.batch_size, steps_per_epoch=plan.steps_per_epoch,
            normalization=plan.normalization, augmented=plan.augmented, seed=plan.seed,
        )  # fmt: skip
        batch = jax.lax.with_sharding_constraint(batch, placement.batch)
        after, metrics = train_step(state, batch, graph=graphs.train, optimizer=optimizer)
        return (after, add_metrics(sums, metrics, state.step, plan.batch_size)), None

    if num_steps == 1:
        return one((state, sums), None)[0]
    return jax.lax.scan(one, (state, sums), length=num_steps)[0]


def compile_programs(
    plan: Plan, graphs: Graphs, optimizer: optax.GradientTransformation, placement: Placement,
    state: TrainState, train: Split, validation: Split, test: Split,
) -> Programs:  # fmt: skip
    """Compile everything that the run will call, before its first step; donation and sharding are decided here."""
    start = time.perf_counter()
    sums, order = placement.put(zero_sums()), order_of_epoch(0, plan, train, placement)
    lengths = {length for length in _dispatches(0, plan)}
    advance_programs = {}
    for length in lengths:
        function = partial(
            advance, num_steps=length, plan=plan, graphs=graphs, optimizer=optimizer, placement=placement
        )
        jitted = jax.jit(function, donate_argnums=(0, 1), out_shardings=placement.replicated)
        advance_programs[length] = jitted.lower(state, sums, train, order).compile()
    function = partial(eval_step, graph=graphs.eval, batch_size=plan.eval_batch_size, normalization=plan.normalization)
    jitted = jax.jit(function, donate_argnums=1, out_shardings=placement.replicated)
    first = placement.put(jnp.zeros((), jnp.int32))
    eval_programs = {
        len(split.labels): jitted.lower(state, sums, split, first).compile() for split in (validation, test)
    }

    def evaluate(state: TrainState, data: Split) -> Sums:
        sums = placement.put(zero_sums())
        program = eval_programs[len(data.labels)]
        for begin in range(0, len(data.labels), plan.eval_batch_size):
            sums = program(state, sums, data, placement.put(np.int32(begin)))
        return jax.device_get(sums)

    return Programs(advance_programs, evaluate, time.perf_counter() - start)


def order_of_epoch(epoch: int, plan: Plan, train: Split, placement: Placement) -> jax.Array:
    return placement.put(epoch_order(jnp.asarray(epoch, jnp.int32), seed=plan.seed, count=len(train.labels)))


def run_epoch(
    programs: Programs, plan: Plan, state: TrainState, sums: Sums, train: Split, order: jax.Array, step: int,
    *, log_every_steps: int,
) -> Iterator[tuple[int, TrainState, Sums]]:  # fmt: skip
    """Train from ``step`` to the end of its epoch, yielding (step, state, sums) after every dispatch.

    The caller may stop in between; the yielded state is given away with the next dispatch. Every ``log_every_steps`` the
    sums are waited for: it bounds how far the host runs ahead, and finds a loss that is not finite.
    Raises :class:`~dctps_jax.training.stopping.NonFiniteLoss`.
    """
    next_look = step + log_every_steps
    for length in _dispatches(step % plan.steps_per_epoch, plan):
        with jax.transfer_guard("disallow"):
            state, sums = programs.advance[length](state, sums, train, order)
        step += length
        if step >= next_look:
            check_finite(sums)
            next_look += log_every_steps
        yield step, state, sums


def check_finite(sums: Sums) -> None:
    """Raise :class:`~dctps_jax.training.stopping.NonFiniteLoss` where a step's loss was infinite or not a number."""
    bad_step = int(sums.bad_step)
    if bad_step != NO_BAD_STEP:
        raise NonFiniteLoss(bad_step)


def means(sums: Sums) -> tuple[float, float]:
    """Return mean loss an image and accuracy of an evaluation."""
    images = int(sums.images)
    return float(sums.loss) / images, int(sums.correct) / images


def default_steps_per_dispatch() -> int:
    """Return how many steps one call to the device takes where the config leaves it open.

    On CPU XLA compiles the body of a loop worse than a program of its own, and a call costs little beside a step.
    """
    return 1 if jax.default_backend() == "cpu" else 50


def _dispatches(position: int, plan: Plan) -> Iterator[int]:
    """Yield the lengths of the dispatches from ``position`` in an epoch to its end.

    A function of the position alone, so that a resumed run calls the same programs as one that was never stopped.
    """
    length = min(plan.steps_per_dispatch, plan.steps_per_epoch)
    while position < plan.steps_per_epoch:
        taken = length if position % length == 0 and position + length <= plan.steps_per_epoch else 1
        yield taken
        position += taken


def steps_in_epoch(num_images: int, batch_size: int) -> int:
    return math.floor(num_images / batch_size)
