"""Train the network of one seed, from its data to its results, in order."""

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dctps_jax import pruning
from dctps_jax.accounts.storage import storage_account, storage_table
from dctps_jax.distributed.agreement import Stop, check_equal, is_first, on_first
from dctps_jax.files import digest_of
from dctps_jax.optimizers import rate_scale
from dctps_jax.runs.checkpoint import Checkpoints, steps_in
from dctps_jax.runs.growth import check_growth
from dctps_jax.runs.loggers import open_loggers
from dctps_jax.runs.metrics import MetricsLog, best_of, describe
from dctps_jax.runs.packing import digest, flatten
from dctps_jax.runs.repair import check_not_begun, masks_of, mend_files
from dctps_jax.runs.source_run import rewinds
from dctps_jax.runs.summary import last_line
from dctps_jax.runs.workdir import write_results
from dctps_jax.training import loop
from dctps_jax.training.from_config import make_step_spec
from dctps_jax.training.placement import place_on_all_devices
from dctps_jax.training.progress import Progress, compiling
from dctps_jax.training.rewinding import rewound
from dctps_jax.training.seed_checkpoints import SeedCheckpoints
from dctps_jax.training.seed_data import read_data
from dctps_jax.training.seed_network import build_network
from dctps_jax.training.seed_results import describe_network, describe_run, measure_on_test_images, num_trainable
from dctps_jax.training.signals import NonFiniteLoss, Stopped, StopSignals, suggest_rate
from dctps_jax.training.state import supports_by_path
from dctps_jax.training.step import zero_sums
from dctps_jax.training.streaming import place_images


def train_seed(
    config: Any, workdir: Path, bind: Callable[[dict[str, Any], dict[str, str]], None], signals: StopSignals
) -> dict[str, Any]:
    """Train and test the network that ``config`` describes, in ``workdir``; go on where an earlier call was stopped.

    Returns the content of ``results.json``. ``bind`` is called with a description of the data and one of the split,
    once nothing can be wrong with config and data any more, before the first file is written.

    Raises :class:`~dctps_jax.errors.UserError` where the config cannot work with the data or the directory,
    :class:`~dctps_jax.training.signals.NonFiniteLoss`, and :class:`~dctps_jax.training.signals.Stopped`.
    """
    started = time.perf_counter()
    shown = workdir.relative_to(Path.cwd()) if workdir.is_relative_to(Path.cwd()) else workdir
    precision = "" if config.model.dtype == "auto" else f", computed in {config.model.dtype}"
    print(f"{config.model.name} on {config.data.name}{precision}, in {shown}")

    # What an earlier call saved.
    plain_config = json.loads(config.to_json())
    checkpoints = Checkpoints(workdir / "checkpoints", plain_config)
    saved = checkpoints.newest_for_all("latest")
    if saved is None:
        on_first(check_not_begun, workdir)

    # Data, network and state: new ones, or those that an earlier call saved.
    placement = place_on_all_devices(config.distributed.shards)
    data = read_data(config, workdir, saved, placement)
    spec = make_step_spec(config, data.dataset, data.train_split, placement.platform, data.is_streamed)
    if saved is not None:
        taken = max([saved.step, *steps_in(checkpoints.folder / "best")])
        on_first(check_growth, workdir, config, taken, spec.steps_per_epoch)
    network, state = build_network(config, workdir, data, spec, saved, placement)
    setup, shapes, weights = network.setup, network.shapes, network.weights
    store = SeedCheckpoints(checkpoints, data, network, state)
    # Abstract: the arrays themselves are given away with the first step.
    step = 0 if saved is None else saved.step
    stored_shapes = store.shapes_of_stored(step, state)
    print(storage_table(storage_account(state, stored_shapes, setup.graphs.shapes, setup.optimizer)))
    no_sums = zero_sums(max(1, len(setup.graphs.counts)))
    sums = placement.put(no_sums)

    # Start, or resume.
    is_resumed, rows = saved is not None, []
    if saved is not None:
        state, sums = store.restore(saved, state, sums)
        rows = saved.record.get("rows")
        print(f"going on from step {step}")
    elif rewinds(config):
        step, state, rows = rewound(config, data.dataset, state, setup)
    del saved
    check_equal(
        "the weights at the start",
        "run all processes on machines of one kind",
        lambda: digest(flatten(placement.for_files(state))),
    )
    on_first(bind, data.images_described, data.split_described)

    def save(rows: Sequence[dict[str, Any]]) -> None:
        store.save(step, state, sums, rows)
        signals.saved_step = step

    if rewinds(config) and not is_resumed:
        store.keep(step, state, rows or [])  # later rounds rewind to it
        save(rows or [])
        print(f"beginning at epoch {step // spec.steps_per_epoch} of {config.pruning.run}")
    initial_masks = masks_of(store.initial_supports, shapes)
    mask_files = {"masks_initial.npz": initial_masks, "masks.npz": initial_masks}
    if is_resumed:
        on_first(mend_files, workdir, step, rows, mask_files)
    elif is_first():
        for name, masks in mask_files.items():
            pruning.save_masks(workdir / name, masks)
    log = MetricsLog(workdir, step, rows, lambda: open_loggers(workdir, step, config))
    # A run that was stopped while it evaluated an epoch stands at the end of it, with the epoch's sums.
    is_epoch_pending = step > 0 and step % spec.steps_per_epoch == 0 and int(sums.images) > 0
    first_epoch = step // spec.steps_per_epoch - int(is_epoch_pending)
    log.check_rows_of(first_epoch)

    # Compile. The images live on the devices as uint8, or are brought there when they are used.
    train, test_images = place_images(config, data.dataset, placement, data.is_streamed)
    validation_rows, test_rows = data.validation_rows, np.arange(len(data.dataset.test_labels), dtype=np.int32)
    if not data.is_streamed:
        validation_rows, test_rows = placement.put(validation_rows), placement.put(test_rows)
    validation, test = (train, validation_rows), (test_images, test_rows)

    def epoch_of(number: int) -> loop.Epoch:
        return placement.put(loop.epoch_of(number, spec, data.train_rows))

    with compiling(len(shapes)):
        programs = loop.compile_programs(setup, state, sums, train, epoch_of(0), [validation, test])
    print(
        f"{config.model.name}, {num_trainable(stored_shapes):,} trainable parameters, "
        f"{spec.steps_per_epoch} steps an epoch, {placement.words}, compiled in {programs.compile_seconds:.1f} s"
    )

    stop = Stop(placement.batch)

    def stop_if_asked() -> None:
        if (number := stop.agreed(signals.number)) is not None:
            loop.check_finite(sums, state)
            save(log.rows)
            raise Stopped(number, step)

    # Train.
    progress = Progress(config.num_epochs, spec.steps_per_epoch, spec.batch_size, config.log_every_steps)
    every = config.checkpoint_every_steps
    with signals.saving(step), suggest_rate(config.optimizer.learning_rate, spec.steps_per_epoch):
        for epoch in range(first_epoch, config.num_epochs):
            epoch_started, first_step = time.perf_counter(), step
            with progress.epoch(epoch, step):
                if not is_epoch_pending:
                    dispatches = loop.run_epoch(
                        programs,
                        state,
                        sums,
                        train,
                        epoch_of(epoch),
                        step,
                        config.log_every_steps,
                        weights.numbers_for,
                        progress.finished,
                    )
                    for now, state, sums in dispatches:
                        before, step = step, now
                        if step % spec.steps_per_epoch == 0:
                            break
                        stop_if_asked()
                        if every and step // every > before // every:
                            loop.check_finite(sums, state)
                            save(log.rows)
                is_epoch_pending = False
                loop.check_finite(sums, state)
                epoch_seconds = time.perf_counter() - epoch_started
                progress.note("validating")
                val_loss, val_accuracy = loop.means(programs.evaluate(state, *validation, stop_if_asked))
            if not math.isfinite(val_loss):
                raise NonFiniteLoss(step, "the validation loss is")
            row = {
                "epoch": epoch + 1,
                "step": step,
                "train_loss": float(sums.loss) / spec.steps_per_epoch,
                "train_accuracy": int(sums.correct) / int(sums.images),
                "val_loss": val_loss,
                "val_accuracy": val_accuracy,
                "learning_rate": float(network.schedule(step - 1)) * rate_scale(state.opt_state),
                # A run that was stopped after an epoch's last step has no step to time when it goes on.
                "images_per_second": (step - first_step) * spec.batch_size / epoch_seconds
                if step > first_step
                else None,
            }
            if spec.updates is not None:
                moved = dict(zip(setup.graphs.counts, np.asarray(sums.moved).tolist(), strict=True))
                row |= spec.updates.metrics(moved, weights.density_at(step))
            print(describe(row, config.num_epochs))
            if best_of([*log.rows, row]) is row:
                store.save_best(step, state)
            sums = placement.put(no_sums)
            if epoch + 1 in config.keep_epochs:
                store.keep(step, state, [*log.rows, row])
            save([*log.rows, row])
            log.append(row)
            if (number := stop.agreed(signals.number, now=True)) is not None:
                raise Stopped(number, step)

    # Test, and write the results.
    best = log.best_row()
    assert best is not None
    tested = measure_on_test_images(programs, test, state, store, best)
    final_masks = initial_masks
    if spec.updates is not None:
        final_masks = masks_of(supports_by_path(jax.device_get(store.stored(step, state).supports)), shapes)
        if is_first():
            pruning.save_masks(workdir / "masks.npz", final_masks)
    results = {
        "best_val_accuracy": best["val_accuracy"],
        "best_epoch": best["epoch"],
        **tested,
        **describe_network(config, step, state, store),
        **describe_run(config, store, programs.compile_seconds),
        "total_seconds": time.perf_counter() - started,
    }
    digests = {"metrics.jsonl": digest_of(log.rows), "masks.npz": pruning.digest_of_masks(final_masks)}
    results = write_results(workdir, results, plain_config, digests)
    checkpoints.close()
    log.close()
    print(last_line(results))
    return results
