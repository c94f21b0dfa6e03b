"""The compiled programs of a run, and how they are called for an epoch of training or for an evaluation."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dctps_jax.data.augmentation import Crops, draw_crops_of_steps
from dctps_jax.data.batches import (
    Examples,
    ExamplesInRows,
    Window,
    epoch_permutation,
    evaluation_batch,
    training_batch,
)
from dctps_jax.seeds import stream
from dctps_jax.training.mask_updates import MASK_UPDATES, UpdateSettings
from dctps_jax.training.placement import Placement
from dctps_jax.training.queue_limit import MOST_QUEUED, Pace
from dctps_jax.training.signals import NonFiniteLoss
from dctps_jax.training.state import Graphs, TrainState
from dctps_jax.training.step import NO_BAD_STEP, Sums, add_metrics, eval_step, train_step, zero_sums
from dctps_jax.training.step_spec import StepSpec, dispatches
from dctps_jax.training.streamed_images import StreamedImages


class Epoch(NamedTuple):
    """The rows of the training images in the order of an epoch, and the key of the run's random numbers."""

    rows: jax.Array
    key: jax.Array


class Setup(NamedTuple):
    """Everything that programs are compiled from, except the arrays that they are called with."""

    spec: StepSpec
    graphs: Graphs
    optimizer: optax.GradientTransformation
    placement: Placement


class Programs(NamedTuple):
    """Compiled programs, and what they were compiled from.

    - ``step_programs[n]`` takes n steps: (state, sums, train, epoch) → (state, sums). ``train`` has all images, or is
      the window of these steps.
    - ``update_program`` takes a step that changes the supports: (state, sums, train, epoch, numbers by layer) →
      (state, sums).
    - ``pick_programs`` pick a batch to evaluate from images on the devices: (images, rows, first position) → (batch,
      which images of it count). There is one for each pair of shapes of labels and rows.
    - ``evaluate_program`` adds such a batch to sums: (state, sums, batch, which images count) → sums.
    """

    setup: Setup
    step_programs: dict[int, Callable[..., tuple[TrainState, Sums]]]
    update_program: Callable[..., tuple[TrainState, Sums]] | None
    pick_programs: dict[tuple[Any, Any], Callable[..., tuple[Examples, jax.Array]]]
    evaluate_program: Callable[..., Sums]
    compile_seconds: float

    def evaluate(
        self,
        state: TrainState,
        data: ExamplesInRows | StreamedImages,
        rows: Any,
        before_batch: Callable[[], None] = lambda: None,
    ) -> Sums:
        """Return the sums over the images of ``data`` in ``rows``; ``before_batch`` may raise to end the evaluation."""
        sums, pace = self.setup.placement.put(zero_sums()), Pace()
        for batch, valid in self._batches(data, rows):
            before_batch()
            sums = self.evaluate_program(state, sums, batch, valid)
            pace.wait(sums)
        return jax.device_get(sums)

    def _batches(self, data: ExamplesInRows | StreamedImages, rows: Any) -> Iterator[tuple[Examples, jax.Array]]:
        batch_size = self.setup.spec.eval_batch_size
        if isinstance(data, StreamedImages):
            yield from data.batches(rows, batch_size)
            return
        pick = self.pick_programs[data.labels.shape, rows.shape]
        for begin in range(0, len(rows), batch_size):
            yield pick(data, rows, self.setup.placement.put(np.int32(begin)))


def take_steps(
    state: TrainState, sums: Sums, train: ExamplesInRows | Window, epoch: Epoch, *, num_steps: int, setup: Setup
) -> tuple[TrainState, Sums]:
    """Take ``num_steps`` steps of an epoch, beginning at the step of ``state``."""

    def take_step(carry: tuple[TrainState, Sums], crops: Crops | None) -> tuple[tuple[TrainState, Sums], None]:
        state, sums = carry
        after, metrics = train_step(
            state,
            batch_of_step(state.step, train, epoch, setup, crops),
            graph=setup.graphs.train,
            optimizer=setup.optimizer,
            mesh=setup.placement.replicated.mesh,
            random=setup.graphs.random,
            ema_decay=setup.spec.ema_decay,
            loss_scale=setup.spec.loss_scale,
        )
        return (after, add_metrics(sums, metrics, state.step, setup.spec.batch_size)), None

    if num_steps == 1:
        return take_step((state, sums), None)[0]
    crops = None
    if setup.spec.augmented:
        crops = draw_crops_of_steps(state.step, num_steps, key=epoch.key, batch_size=setup.spec.batch_size)
    return jax.lax.scan(take_step, (state, sums), crops, length=num_steps)[0]


def update_masks(
    state: TrainState, sums: Sums, train: ExamplesInRows | Window, epoch: Epoch, numbers: jax.Array, *, setup: Setup
) -> tuple[TrainState, Sums]:
    """Take a step that changes the supports; ``numbers`` has one number for each of ``graphs.counts``."""
    spec, graphs = setup.spec, setup.graphs
    settings = UpdateSettings(
        graphs=graphs,
        optimizer=setup.optimizer,
        key=jax.random.fold_in(stream(epoch.key, "growth"), state.step),
        mesh=setup.placement.replicated.mesh,
        loss_scale=spec.loss_scale,
        ema_decay=spec.ema_decay,
    )
    batch = batch_of_step(state.step, train, epoch, setup)
    by_layer = dict(zip(graphs.counts, numbers, strict=True))
    after, metrics, moved = MASK_UPDATES[spec.sparse_training](state, batch, by_layer, settings)
    sums = add_metrics(sums, metrics, state.step, spec.batch_size)
    return after, sums._replace(moved=sums.moved + jnp.stack(list(moved.values())).astype(jnp.int32))


def batch_of_step(
    step: jax.Array, train: ExamplesInRows | Window, epoch: Epoch, setup: Setup, crops: Crops | None = None
) -> tuple[jax.Array, jax.Array]:
    """Return the batch of a step. ``crops`` are the crops of the step, if they are drawn already."""
    spec = setup.spec
    batch = training_batch(
        train,
        epoch.rows,
        step,
        batch_size=spec.batch_size,
        steps_per_epoch=spec.steps_per_epoch,
        normalization=spec.normalization,
        augmented=spec.augmented,
        only_flips=spec.only_flips,
        key=epoch.key,
        regularization=spec.regularization,
        crops=crops,
    )
    return jax.lax.with_sharding_constraint(batch, setup.placement.batch)


def compile_programs(
    setup: Setup,
    state: TrainState,
    sums: Sums,
    train: ExamplesInRows | StreamedImages,
    epoch: Epoch,
    evaluated: Sequence[tuple[ExamplesInRows | StreamedImages, Any]],
) -> Programs:
    """Compile everything that the run will call, before its first step; donation and sharding are decided here.

    ``evaluated`` are the images and rows that will be evaluated. Either all images are on the devices, or all are
    streamed.
    """
    start = time.perf_counter()
    spec, graphs, _, placement = setup
    # Dispatch lengths of a whole epoch, and of the rest of the current epoch after a resume in its middle.
    lengths = {length for first in (0, int(state.step)) for length, _ in dispatches(first, spec)}
    if spec.updates:  # some epochs have updates, others have none: single steps and full dispatches
        lengths |= {1, spec.longest_dispatch}

    def given(num_steps: int) -> Any:
        return train.abstract_window(num_steps, spec.batch_size) if isinstance(train, StreamedImages) else train

    step_programs = {
        num_steps: placement.compile(
            partial(take_steps, num_steps=num_steps, setup=setup), (state, sums, given(num_steps), epoch), (0, 1)
        )
        for num_steps in lengths
    }
    update_program = None
    if spec.updates:
        numbers = placement.abstract(np.zeros(len(graphs.counts), np.int32))
        update_program = placement.compile(
            partial(update_masks, setup=setup), (state, sums, given(1), epoch, numbers), (0, 1)
        )
    # Picking a batch is a program of its own, so that the network is compiled once for everything that is evaluated.
    pick = partial(evaluation_batch, batch_size=spec.eval_batch_size)
    no_sums, first = placement.abstract((zero_sums(), np.int32(0)))
    pick_programs = {
        (data.labels.shape, rows.shape): placement.compile(pick, (data, rows, first), ())
        for data, rows in evaluated
        if isinstance(data, ExamplesInRows)
    }
    evaluate = partial(
        eval_step,
        graph=graphs.eval,
        normalization=spec.normalization,
        sharding=placement.batch,
        random=graphs.random,
    )
    data, rows = evaluated[0]
    if isinstance(data, StreamedImages):
        batch = data.abstract_batch(spec.eval_batch_size)
    else:
        batch = placement.abstract(jax.eval_shape(pick, data, rows, first))
    evaluate_program = placement.compile(evaluate, (state, no_sums, *batch), (1,))
    seconds = time.perf_counter() - start
    return Programs(setup, step_programs, update_program, pick_programs, evaluate_program, seconds)


def epoch_of(number: int, spec: StepSpec, rows: np.ndarray) -> Epoch:
    """Return an epoch over the ``rows`` of the training images."""
    key = jax.random.key(spec.seed)
    order = epoch_permutation(number, key=key, count=len(rows))
    return Epoch(jnp.asarray(rows[np.asarray(order)]), key)


def run_epoch(
    programs: Programs,
    state: TrainState,
    sums: Sums,
    train: ExamplesInRows | StreamedImages,
    epoch: Epoch,
    step: int,
    log_every_steps: int = MOST_QUEUED,
    numbers_at: Callable[[int], Mapping[str, int]] | None = None,
    on_finished: Callable[[int, Sums], None] = lambda step, sums: None,
) -> Iterator[tuple[int, TrainState, Sums]]:
    """Train from ``step`` to the end of its epoch, yielding (step, state, sums) after every dispatch.

    ``numbers_at`` returns the numbers of each layer for a step that changes the supports. The caller may stop between
    dispatches; the next dispatch donates the yielded state. The host waits for the sums every ``log_every_steps``, or
    earlier if steps take long. That limits how far the host runs ahead, and finds a loss that is not finite. Then
    ``on_finished`` gets the step that the device has reached, and the sums. Raises
    :class:`~dctps_jax.training.signals.NonFiniteLoss`.
    """
    spec, placement = programs.setup.spec, programs.setup.placement
    pace = Pace(max(1, log_every_steps // spec.steps_per_dispatch))
    if isinstance(train, StreamedImages):
        given: Iterator[Any] = train.windows(np.asarray(epoch.rows), step, spec)
    else:
        given = itertools.repeat(train)
    for (length, is_update), images in zip(dispatches(step, spec), given, strict=False):
        if is_update:
            assert programs.update_program is not None and numbers_at is not None
            by_layer = numbers_at(step)
            numbers = placement.put(np.array([by_layer[path] for path in programs.setup.graphs.counts], np.int32))
            state, sums = programs.update_program(state, sums, images, epoch, numbers)
        else:
            with jax.transfer_guard("disallow"):
                state, sums = programs.step_programs[length](state, sums, images, epoch)
        is_due = (step + length) // log_every_steps > step // log_every_steps
        step += length
        if pace.wait(sums, is_due):
            check_finite(sums)
            on_finished(step, sums)
        yield step, state, sums


def check_finite(sums: Sums, state: TrainState | None = None) -> None:
    """Raise :class:`~dctps_jax.training.signals.NonFiniteLoss` if a step's loss was infinite or not a number.

    With a ``state``, as before it is saved, its weights and statistics must be finite too: a step's loss is measured
    before its update.
    """
    if int(sums.bad_step) != NO_BAD_STEP:
        raise NonFiniteLoss(int(sums.bad_step))
    if state is not None and not _is_finite((state.params, state.batch_stats)):
        raise NonFiniteLoss(int(state.step), "the weights are")


@jax.jit
def _is_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def means(sums: Sums) -> tuple[float, float]:
    """Return the mean loss per image and the accuracy of an evaluation."""
    images = int(sums.images)
    return float(sums.loss) / images, int(sums.correct) / images
