"""The compiled programs of a run and the loop that calls them: no host round trip per step."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from dctps_jax.compiler import compiler_options
from dctps_jax.data.batches import Normalization, Split, epoch_order, make_batch, training_batch
from dctps_jax.pruning.dynamic import UpdateSchedule
from dctps_jax.seeds import stream
from dctps_jax.training.side_by_side import over_seeds, stacked
from dctps_jax.training.state import Graphs, TrainState
from dctps_jax.training.step import NO_BAD_STEP, Sums, add_metrics, eval_step, mask_update_step, train_step, zero_sums
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
    sparse_training: str = "static"
    updates: UpdateSchedule | None = None


class Placement(NamedTuple):
    """Where arrays live: whole on every device, or split along the batch."""

    replicated: NamedSharding
    batch: NamedSharding

    @property
    def axis_name(self) -> str | None:
        """The axis of the mesh, or None where there is one device only."""
        mesh = self.replicated.mesh
        return mesh.axis_names[0] if mesh.size > 1 else None

    def put(self, tree: Any) -> Any:
        """Place copies of ``tree`` whole on every device."""
        # device_put may alias the source on one of the devices, and a donated alias would delete the caller's array.
        copies = jax.tree.map(lambda leaf: jnp.copy(leaf) if isinstance(leaf, jax.Array) else leaf, tree)
        return jax.device_put(copies, self.replicated, may_alias=False)


def place_on_all_devices() -> Placement:
    """Return the placement for data-parallel training over all devices of all hosts."""
    # Auto axes: with explicit ones, the gathers of the random crop would each need a sharding of their own.
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    return Placement(NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data")))


class Programs(NamedTuple):
    """Compiled programs. ``advance[n]`` takes n steps: (state, sums, train, order) → (state, sums).

    ``update_masks`` takes a step that moves weights: (state, sums, train, order, weights to drop by layer) → the same.
    ``evaluate`` takes images and the rows of those to look at. With several seeds all but images has a leading axis of them.
    """

    advance: dict[int, Callable[..., tuple[TrainState, Sums]]]
    update_masks: Callable[..., tuple[TrainState, Sums]] | None
    evaluate: Callable[[TrainState, Split, jax.Array], Sums]
    compile_seconds: float


def advance(
    state: TrainState, sums: Sums, train: Split, order: jax.Array,
    *, num_steps: int, plan: Plan, graphs: Graphs, optimizer: optax.GradientTransformation, placement: Placement,
) -> tuple[TrainState, Sums]:  # fmt: skip
    """Take ``num_steps`` steps from where ``state`` stands; ``order`` has the rows of ``train`` in the order of its epoch."""

    def one(carry: tuple[TrainState, Sums], _: None) -> tuple[tuple[TrainState, Sums], None]:
        state, sums = carry
        batch = batch_of_step(state.step, train, order, plan, placement)
        after, metrics = train_step(
            state, batch, graph=graphs.train, optimizer=optimizer, mesh=placement.replicated.mesh
        )
        return (after, add_metrics(sums, metrics, state.step, plan.batch_size)), None

    if num_steps == 1:
        return one((state, sums), None)[0]
    return jax.lax.scan(one, (state, sums), length=num_steps)[0]


def update_masks(
    state: TrainState, sums: Sums, train: Split, order: jax.Array, num_drop: jax.Array,
    *, plan: Plan, graphs: Graphs, optimizer: optax.GradientTransformation, placement: Placement,
) -> tuple[TrainState, Sums]:  # fmt: skip
    """Take a step that moves weights; ``num_drop`` has a number for each of ``graphs.counts``."""
    growth_key = jax.random.fold_in(stream(plan.seed, "growth"), state.step) if plan.sparse_training == "set" else None
    after, metrics, moved = mask_update_step(
        state, batch_of_step(state.step, train, order, plan, placement), dict(zip(graphs.counts, num_drop, strict=True)),
        growth_key, graphs=graphs, optimizer=optimizer, mesh=placement.replicated.mesh,
    )  # fmt: skip
    sums = add_metrics(sums, metrics, state.step, plan.batch_size)
    return after, sums._replace(moved=sums.moved + jnp.stack(list(moved.values())).astype(jnp.int32))


def batch_of_step(
    step: jax.Array, train: Split, order: jax.Array, plan: Plan, placement: Placement
) -> tuple[jax.Array, jax.Array]:
    batch = training_batch(
        train, order, step, batch_size=plan.batch_size, steps_per_epoch=plan.steps_per_epoch,
        normalization=plan.normalization, augmented=plan.augmented, seed=plan.seed,
    )  # fmt: skip
    return jax.lax.with_sharding_constraint(batch, placement.batch)


def host_batch(number: int, train: Split, plan: Plan) -> tuple[jax.Array, jax.Array]:
    """Return the batch of training step ``number`` out of training images that are not on the devices yet."""
    epoch, position = divmod(number, plan.steps_per_epoch)
    order = epoch_order(jnp.asarray(epoch, jnp.int32), seed=plan.seed, count=len(train.labels))
    picked = train.at(np.asarray(order)[position * plan.batch_size :][: plan.batch_size])
    return make_batch(
        picked, jnp.asarray(number), normalization=plan.normalization, augmented=plan.augmented, seed=plan.seed
    )


def compile_programs(
    plans: Sequence[Plan], graphs: Graphs, optimizer: optax.GradientTransformation, placement: Placement,
    state: TrainState, sums: Sums, train: Split, order: jax.Array, evaluated: Sequence[tuple[Split, jax.Array]],
) -> Programs:  # fmt: skip
    """Compile everything that the run will call, before its first step; donation and sharding are decided here.

    ``evaluated`` are the images and rows that will be evaluated. ``plans`` has one for each seed; with several, all but images is stacked
    (:mod:`dctps_jax.training.side_by_side`).
    """
    start = time.perf_counter()
    plan, options = plans[0], compiler_options()
    fixed = {"graphs": graphs, "optimizer": optimizer, "placement": placement}

    def compiled(
        function: Callable[..., Any], arguments: tuple[Any, ...], shared: set[int], donated: tuple[int, ...]
    ) -> Any:
        jitted = jax.jit(
            over_seeds(function, plans, shared), donate_argnums=donated, out_shardings=placement.replicated
        )
        return jitted.lower(*arguments).compile(options)

    # Those of a whole epoch and those of the rest of the current one, which may be out of step with it.
    step = int(np.max(state.step))
    lengths = {length for first in (0, step) for length, _ in _dispatches(first, plan)}
    if plan.updates:
        lengths.add(1)
    advance_programs, update_program = {}, None
    for num_steps in lengths:

        def advance_by(plan: Plan, *arguments: Any, num_steps: int = num_steps) -> Any:
            return advance(*arguments, num_steps=num_steps, plan=plan, **fixed)

        advance_programs[num_steps] = compiled(advance_by, (state, sums, train, order), {2}, (0, 1))
    if plan.updates:
        num_drop = placement.put(stacked([np.zeros(len(graphs.counts), np.int32)] * len(plans)))

        def update(plan: Plan, *arguments: Any) -> Any:
            return update_masks(*arguments, plan=plan, **fixed)

        update_program = compiled(update, (state, sums, train, order, num_drop), {2}, (0, 1))

    def evaluate_batch(plan: Plan, *arguments: Any) -> Sums:
        return eval_step(
            *arguments, graph=graphs.eval, batch_size=plan.eval_batch_size, normalization=plan.normalization,
            sharding=placement.batch,
        )  # fmt: skip

    first, none = placement.put(jnp.zeros((), jnp.int32)), stacked([zero_sums()] * len(plans))
    eval_programs = {
        (data.labels.shape, rows.shape): compiled(
            evaluate_batch, (state, placement.put(none), data, rows, first), {2, 4}, (1,)
        )
        for data, rows in evaluated
    }

    def evaluate(state: TrainState, data: Split, rows: jax.Array) -> Sums:
        sums = placement.put(none)
        program = eval_programs[data.labels.shape, rows.shape]
        for begin in range(0, rows.shape[-1], plan.eval_batch_size):
            sums = program(state, sums, data, rows, placement.put(np.int32(begin)))
        return jax.device_get(sums)

    return Programs(advance_programs, update_program, evaluate, time.perf_counter() - start)


def order_of_epoch(epoch: int, plan: Plan, rows: np.ndarray) -> np.ndarray:
    """Return the ``rows`` of the training images in the order in which an epoch visits them."""
    return rows[np.asarray(epoch_order(jnp.asarray(epoch, jnp.int32), seed=plan.seed, count=len(rows)))]


def run_epoch(
    programs: Programs, plan: Plan, placement: Placement, state: TrainState, sums: Sums, train: Split, order: jax.Array, step: int,
    *, log_every_steps: int, num_drop_at: Callable[[int], np.ndarray] | None = None, seeds: Sequence[int] = (0,),
) -> Iterator[tuple[int, TrainState, Sums]]:  # fmt: skip
    """Train from ``step`` to the end of its epoch, yielding (step, state, sums) after every dispatch.

    ``num_drop_at`` says how many weights each layer drops at a step that updates masks, stacked over several seeds.
    The caller may stop in between; the yielded state is given away with the next dispatch. Every ``log_every_steps`` the
    sums are waited for: it bounds how far the host runs ahead, and finds a loss that is not finite.
    Raises :class:`~dctps_jax.training.stopping.NonFiniteLoss`.
    """
    next_look = step + log_every_steps
    for length, is_update in _dispatches(step, plan):
        if is_update:
            assert programs.update_masks is not None and num_drop_at is not None
            num_drop = placement.put(num_drop_at(step))
            state, sums = programs.update_masks(state, sums, train, order, num_drop)
        else:
            with jax.transfer_guard("disallow"):
                state, sums = programs.advance[length](state, sums, train, order)
        step += length
        if step >= next_look:
            check_finite(sums, seeds=seeds)
            next_look += log_every_steps
        yield step, state, sums


def check_finite(sums: Sums, state: TrainState | None = None, seeds: Sequence[int] = (0,)) -> None:
    """Raise :class:`~dctps_jax.training.stopping.NonFiniteLoss` where a step's loss was infinite or not a number.

    With a ``state``, as before it is saved, its weights and statistics have to be finite too: a step's loss is measured
    before its update. ``seeds`` are those that train side by side.
    """
    bad_steps = np.atleast_1d(sums.bad_step)
    if bad_steps.min() != NO_BAD_STEP:
        raise NonFiniteLoss(int(bad_steps.min()), seeds=_those(seeds, bad_steps != NO_BAD_STEP))
    if state is not None:
        finite = np.atleast_1d(_is_finite((state.params, state.batch_stats), state.step.ndim))
        if not finite.all():
            raise NonFiniteLoss(int(np.max(state.step)), "the weights are", _those(seeds, ~finite))


def _those(seeds: Sequence[int], chosen: np.ndarray) -> list[int]:
    return [seed for seed, is_chosen in zip(seeds, chosen, strict=True) if is_chosen] if len(seeds) > 1 else []


@partial(jax.jit, static_argnums=1)
def _is_finite(tree: Any, num_axes: int) -> jax.Array:
    """Return whether all numbers of a tree are finite, for each entry of its leading ``num_axes`` axes."""
    return jnp.stack([jnp.isfinite(leaf).all(range(num_axes, leaf.ndim)) for leaf in jax.tree.leaves(tree)]).all(0)


def means(sums: Sums) -> tuple[float, float]:
    """Return mean loss an image and accuracy of an evaluation."""
    images = int(sums.images)
    return float(sums.loss) / images, int(sums.correct) / images


def default_steps_per_dispatch() -> int:
    """Return how many steps one call to the device takes where the config leaves it open.

    On CPU XLA compiles the body of a loop worse than a program of its own, and a call costs little beside a step.
    """
    return 1 if jax.default_backend() == "cpu" else 50


def _dispatches(step: int, plan: Plan) -> Iterator[tuple[int, bool]]:
    """Yield (steps, whether it is a mask update) for the dispatches from ``step`` to the end of its epoch.

    A function of the step alone, so that a resumed run calls the same programs as one that was never stopped.
    """
    length = min(plan.steps_per_dispatch, plan.steps_per_epoch)
    position = step % plan.steps_per_epoch
    first = step - position
    while position < plan.steps_per_epoch:
        updates = [plan.updates is not None and plan.updates.is_update(first + position + n) for n in range(length)]
        whole = position % length == 0 and position + length <= plan.steps_per_epoch and not any(updates)
        taken = length if whole else 1
        yield taken, updates[0]
        position += taken
