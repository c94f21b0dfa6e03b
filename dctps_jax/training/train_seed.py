"""Train the network of one seed, from its data to its results, in order."""

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dctps_jax import models, pruning
from dctps_jax.accounts.flops import flops_account
from dctps_jax.accounts.layer_table import layer_table
from dctps_jax.accounts.plan_table import plan_table, planned
from dctps_jax.accounts.storage import file_bytes, storage_account, storage_table
from dctps_jax.conversion_table import conversion_report
from dctps_jax.data.batches import Subset, split_training
from dctps_jax.distributed.agreement import Stop, check_equal, is_first, on_first
from dctps_jax.files import digest_of
from dctps_jax.optimizers import rate_scale
from dctps_jax.own import is_import_path
from dctps_jax.runs.bound_data import check_same_data, describe_data, describe_split
from dctps_jax.runs.checkpoint import Checkpoints, as_tree, steps_in
from dctps_jax.runs.growth import check_growth
from dctps_jax.runs.loggers import open_loggers
from dctps_jax.runs.mending import check_not_begun, initial_supports_of, masks_of, mend_files, supports_of
from dctps_jax.runs.metrics import MetricsLog, best_of, describe
from dctps_jax.runs.packing import digest, flatten
from dctps_jax.runs.source_run import rewinds
from dctps_jax.runs.summary import environment, last_line
from dctps_jax.runs.workdir import write_results
from dctps_jax.training import from_config, loop
from dctps_jax.training.forms import is_compact, to_compact, to_masked
from dctps_jax.training.own_network import check_same_program, describe_program
from dctps_jax.training.placement import place_on_all_devices
from dctps_jax.training.progress import Progress, announced, compiling, doing
from dctps_jax.training.rewinding import rewound
from dctps_jax.training.signals import NonFiniteLoss, Stopped, StopSignals, suggest_rate
from dctps_jax.training.sparse_model import build_sparse_model, chooses_by_score, weight_counts
from dctps_jax.training.state import TrainState, create_state, supports_by_path
from dctps_jax.training.step import zero_sums
from dctps_jax.training.streaming import is_streamed, max_decoded_bytes, place_images

logger = logging.getLogger("dctps_jax")


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
    dtype_entry = {} if config.model.dtype == "auto" else {"dtype": config.model.dtype}
    precision = "".join(f", computed in {name}" for name in dtype_entry.values())
    print(f"{config.model.name} on {config.data.name}{precision}, in {shown}")

    # What an earlier call saved.
    plain_config = json.loads(config.to_json())
    checkpoints = Checkpoints(workdir / "checkpoints", plain_config)
    saved = checkpoints.newest_for_all("latest")
    if saved is None:
        on_first(check_not_begun, workdir)

    # Data: images and labels, and the rows to train on and to validate on.
    placement = place_on_all_devices(config.distributed.shards)
    began_with = "" if saved is None else (saved.record.get("data") or {}).get("fingerprint", "")
    with announced("reading the images …"):
        dataset = from_config.load_data(config, max_decoded_bytes(config, placement, began_with))
    streams = is_streamed(config, dataset, placement)
    train_rows, validation_rows = split_training(len(dataset.train_labels), config.data.train_fraction, config.seed)
    described, split = describe_data(dataset), describe_split(train_rows, validation_rows)
    check_equal("the images", "give all hosts the same images", dict, described | split)
    on_first(check_same_data, workdir, described | split, saved.record.get("data") if saved is not None else None)
    train_split = Subset(dataset.train_images, dataset.train_labels, train_rows)
    spec = from_config.make_step_spec(config, dataset, train_split, placement.platform, streams)
    if saved is not None:
        taken = max([saved.step, *steps_in(checkpoints.folder / "best")])
        on_first(check_growth, workdir, config, taken, spec.steps_per_epoch)

    # Network: the layers with their supports, and the optimiser. A run that goes on has its supports.
    network_entry: dict[str, Any] = {}
    if is_import_path(config.model.name):
        network_entry = {"network": describe_program(config, dataset.num_classes, dataset.image_size, dataset.channels)}
        check_equal("the functions", "give all hosts the same program", dict, network_entry)
        known = None if saved is None else saved.record.get("network")
        on_first(check_same_program, workdir, known, network_entry["network"])
    saved_supports = None if saved is None else supports_of(saved)
    is_scored = saved is None and chooses_by_score(config)
    with announced(f"choosing the weights by {config.pruning.method} …" if is_scored else "building the network …"):
        model, supports = build_sparse_model(config, dataset, train_split, spec, saved_supports)
    del train_split
    shapes = {path: layer.kernel_shape for path, layer in models.prunable_layers(model).items()}
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    counts = {path: len(supports[path]) if path in supports else size for path, size in sizes.items()}
    weights = weight_counts(config, spec, shapes, counts)
    optimizer, schedule = from_config.make_optimizer_and_schedule(config, spec.steps_per_epoch)
    report = conversion_report(model)
    if network_entry:
        print(report)
    print(layer_table(shapes, weights.last, sizes))
    if weights.first != weights.last:
        print(f"the table is of the end; the first steps train {100 * weights.density_at(0):.4g} % of the weights")
    if config.execution.explain:
        local = config.batch_size // placement.num_devices
        print(plan_table(planned(model, (local, *dataset.train_images.shape[1:]))))
    from_config.warn_if_nothing_moves(config, spec, weights.last, sizes)

    # State: a new one, or the newest that an earlier call saved, on the devices.
    graphs, state = create_state(model, optimizer, placement.axis_name, spec.ema_decay > 0, placement.put)
    setup = loop.Setup(spec, graphs, optimizer, placement)
    no_sums = zero_sums(max(1, len(graphs.counts)))
    sums = placement.put(no_sums)
    inputs = spec.batch_size, *dataset.train_images.shape[1:]
    flops = flops_account(model, inputs, weights.last, weights.means(config.num_epochs * spec.steps_per_epoch))
    del model
    runs_compact = is_compact(state)
    step = 0 if saved is None else saved.step

    def stored(state: TrainState) -> TrainState:
        """The state as checkpoints hold it, whatever the form of the run."""
        return to_compact(placement.for_files(state), weights.at(step), optimizer)

    def running(state: TrainState) -> TrainState:
        """A state out of a checkpoint in the form of the run."""
        return placement.put(state if runs_compact else to_masked(state, graphs.shapes, optimizer))

    def shapes_of_stored() -> tuple[Any, int]:
        """What a checkpoint holds now, abstractly, and how many parameters of it are trained."""
        # Of a new function: JAX remembers the shapes that an old one gave.
        found = jax.eval_shape(lambda state: to_compact(state, weights.at(step), optimizer), state)
        return placement.abstract_for_files(found), sum(leaf.size for leaf in jax.tree.leaves(found.params))

    # Abstract: the arrays themselves are given away with the first step.
    stored_shapes, num_trainable = shapes_of_stored()
    print(storage_table(storage_account(state, stored_shapes, graphs.shapes, optimizer)))

    def save(rows: Sequence[dict[str, Any]]) -> None:
        tree = {"state": stored(state), "sums": sums}
        if spec.updates is not None:
            tree["initial_supports"] = initial_supports
        record = {"data": described | split, "kernel_shapes": graphs.shapes, "rows": rows} | network_entry
        checkpoints.save("latest", step, tree, record)
        signals.saved_step = step

    def keep(rows: Sequence[dict[str, Any]]) -> None:
        """Keep a checkpoint for good."""
        checkpoints.save("kept", step, {"state": stored(state)}, {"data": described | split, "rows": rows})

    # Start, or resume.
    rows, initial_supports = [], supports
    if saved is not None:
        tree = as_tree(saved, {"state": stored_shapes, "sums": placement.abstract(sums)}, checkpoints.folder)
        state, sums = running(tree["state"]), tree["sums"]
        rows, initial_supports = saved.record.get("rows"), initial_supports_of(saved)
        if not saved.record and spec.updates is not None:  # of format 2
            initial_masks = pruning.load_masks(workdir / "masks_initial.npz")
            initial_supports = {path: np.flatnonzero(mask) for path, mask in initial_masks.items()}
        print(f"going on from step {step}")
        del tree
    elif rewinds(config):
        step, state, rows = rewound(config, dataset, state, setup)
    check_equal(
        "the weights at the start",
        "run all processes on machines of one kind",
        lambda: digest(flatten(placement.for_files(state))),
    )
    is_resumed = saved is not None
    del saved, saved_supports
    on_first(bind, described, split)
    if rewinds(config) and not is_resumed:
        keep(rows or [])  # later rounds rewind to it
        save(rows or [])
        print(f"beginning at epoch {step // spec.steps_per_epoch} of {config.pruning.run}")
    # Updates move the masks later on; where they started from stays on record.
    initial_masks = masks_of(initial_supports, shapes)
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
    train, test_images = place_images(config, dataset, placement, streams)
    test_rows = np.arange(len(dataset.test_labels), dtype=np.int32)
    if not streams:
        validation_rows, test_rows = placement.put(validation_rows), placement.put(test_rows)
    validation, test = (train, validation_rows), (test_images, test_rows)

    def epoch_of(number: int) -> loop.Epoch:
        return placement.put(loop.epoch_of(number, spec, train_rows))

    with compiling(len(shapes)):
        programs = loop.compile_programs(setup, state, sums, train, epoch_of(0), [validation, test])
    print(
        f"{config.model.name}, {num_trainable:,} trainable parameters, {spec.steps_per_epoch} steps an epoch, "
        f"{placement.words}, compiled in {programs.compile_seconds:.1f} s"
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
                "learning_rate": float(schedule(step - 1)) * rate_scale(state.opt_state),
                # A run that was stopped after an epoch's last step has no step to time when it goes on.
                "images_per_second": (step - first_step) * spec.batch_size / epoch_seconds
                if step > first_step
                else None,
            }
            if spec.updates is not None:
                moved = dict(zip(graphs.counts, np.asarray(sums.moved).tolist(), strict=True))
                row |= spec.updates.metrics(moved, weights.density_at(step))
            print(describe(row, config.num_epochs))
            if best_of([*log.rows, row]) is row:
                checkpoints.save("best", step, {"state": stored(state)}, {"data": described | split})
            sums = placement.put(no_sums)
            if epoch + 1 in config.keep_epochs:
                keep([*log.rows, row])
            save([*log.rows, row])
            log.append(row)
            if (number := stop.agreed(signals.number, now=True)) is not None:
                raise Stopped(number, step)

    # Test: the last state, and the one that was best on validation.
    with doing("testing"):
        test_loss, test_accuracy = loop.means(programs.evaluate(state, *test))
    best, test_accuracy_best = log.best_row(), None
    assert best is not None
    stored_shapes, num_trainable = shapes_of_stored()  # fewer weights than at first, where they are pruned
    num_parameters = sum(row.parameters for row in report.rows)
    num_pruned = sum(counts.values()) - sum(weights.last.values())
    saved_best = checkpoints.newest_for_all("best")
    if saved_best is not None and saved_best.step == best["step"]:
        on_first(check_same_data, workdir, described | split, saved_best.record.get("data"))
        best_state = running(as_tree(saved_best, {"state": stored_shapes}, checkpoints.folder)["state"])
        with doing("testing the best epoch"):
            test_accuracy_best = loop.means(programs.evaluate(best_state, *test))[1]
    else:
        logger.warning("the checkpoint of the best epoch %d is lost; test_accuracy_best is left out", best["epoch"])
    test_accuracy_ema = {}
    if spec.ema_decay:
        test_accuracy_ema["test_accuracy_ema"] = loop.means(programs.evaluate(state.averaged(), *test))[1]
    final_masks = initial_masks
    if spec.updates is not None:
        final_masks = masks_of(supports_by_path(jax.device_get(stored(state).supports)), shapes)
        if is_first():
            pruning.save_masks(workdir / "masks.npz", final_masks)
    settings = config.pruning
    results = {
        "best_val_accuracy": best["val_accuracy"],
        "best_epoch": best["epoch"],
        "test_accuracy_best": test_accuracy_best,
        "test_accuracy_final": test_accuracy,
        "test_loss_final": test_loss,
        **test_accuracy_ema,
        "density_asked": pruning.density_asked(settings.method, settings.density, settings.rewind_epoch),
        "density": weights.density_at(step),
        "density_of_all_parameters": (sum(row.trained for row in report.rows) - num_pruned) / num_parameters,
        "layer_densities": {path: weights.last[path] / sizes[path] for path in sizes},
        "trainable_parameters": num_trainable,
        "storage_bytes": storage_account(state, stored_shapes, graphs.shapes, optimizer),
        "flops": flops,
        "step": step,
        "checkpoint_file_bytes": on_first(file_bytes, workdir / "checkpoints" / "latest" / str(step)),
        **dtype_entry,
        "seed": config.seed,
        "data": {
            "class_names": list(dataset.class_names),
            "image_size": described["image_size"],
            "mean": list(map(float, spec.normalization.mean)),
            "std": list(map(float, spec.normalization.std)),
            "fingerprint": dataset.fingerprint,
            "fit": config.data.fit,
        },
        **network_entry,
        "compile_seconds": programs.compile_seconds,
        "total_seconds": time.perf_counter() - started,
        "environment": environment(),
    }
    digests = {"metrics.jsonl": digest_of(log.rows), "masks.npz": pruning.digest_of_masks(final_masks)}
    results = write_results(workdir, results, plain_config, digests)
    checkpoints.close()
    log.close()
    print(last_line(results))
    return results
