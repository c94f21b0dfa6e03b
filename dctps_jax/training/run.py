"""One training run from config to results, in order: data, network, support, state, training, report."""

import logging
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from dctps_jax import data, models, pruning
from dctps_jax.analysis.flops import flops_account
from dctps_jax.analysis.layer_table import layer_table
from dctps_jax.analysis.plan_table import plan_table, planned
from dctps_jax.analysis.storage import file_bytes, storage_account, storage_table
from dctps_jax.config import check_config
from dctps_jax.data.batches import Split, split_training
from dctps_jax.errors import UserError
from dctps_jax.training import loop
from dctps_jax.training.checkpoint import Checkpoints
from dctps_jax.training.forms import is_compact, to_compact, to_masked
from dctps_jax.training.memory import keep_freed_memory
from dctps_jax.training.metrics import MetricsLog, describe
from dctps_jax.training.optimizer import learning_rate_schedule, make_optimizer
from dctps_jax.training.report import environment, last_line, summarize
from dctps_jax.training.setup import build_sparse_model, make_plan
from dctps_jax.training.state import TrainState, create_state, supports_by_path
from dctps_jax.training.step import zero_sums
from dctps_jax.training.stopping import NonFiniteLoss, Stopped, listen_for_signals
from dctps_jax.training.workdir import claim, read_json, record_config, write_json

logger = logging.getLogger("dctps_jax")


def run(config: Any, workdir: Path) -> dict[str, Any]:
    """Train, evaluate and report as ``config`` says, in ``workdir``; go on where an earlier call was stopped.

    With ``num_seeds`` above 1 each seed has a directory ``seed_N`` of its own, and the mean and standard deviation of
    the accuracies are reported. Returns what stands in ``results.json``. A finished run reports and does nothing.

    Raises :class:`~dctps_jax.errors.UserError` before anything is compiled or trained where config, data or directory
    cannot work, :class:`~dctps_jax.training.stopping.NonFiniteLoss`, and
    :class:`~dctps_jax.training.stopping.Stopped` after SIGTERM or Ctrl-C.
    """
    if config.get("execution", {}).get("keep_memory") is True:
        keep_freed_memory()
    if config.get("multi_host", False):
        jax.distributed.initialize()
    config = config.copy_and_resolve_references()
    check_config(config)
    workdir = workdir.absolute()
    if config.num_seeds == 1:
        return _run_seed(config, workdir, [(workdir, config)])
    with claim(workdir, config):
        runs = []
        for seed in range(config.seed, config.seed + config.num_seeds):
            single = config.copy_and_resolve_references()
            single.seed, single.num_seeds = seed, 1
            folder = workdir / f"seed_{seed}"
            print(f"seed {seed}:")
            runs.append(_run_seed(single, folder, [(workdir, config), (folder, single)]))
        return summarize(runs, workdir)


def _run_seed(config: Any, workdir: Path, records: list[tuple[Path, Any]]) -> dict[str, Any]:
    """Do one run in ``workdir``; ``records`` are the directories to bind to their configs once nothing can be wrong."""
    with claim(workdir, config):
        if (workdir / "results.json").exists():
            results = read_json(workdir / "results.json")
            print(f"{workdir} is finished. {last_line(results)}")
            return results
        started = time.perf_counter()

        # Data: split by seed, then whole on every device as uint8.
        dataset = data.load(
            config.data.name, dir=config.data.dir, cache_dir=config.data.cache_dir, image_size=config.data.image_size,
            download=config.data.download,
        )  # fmt: skip
        train, validation = split_training(dataset, config.data.train_fraction, config.seed)
        test = Split(dataset.test_images, dataset.test_labels)
        plan = make_plan(config, dataset, train)
        steps_per_epoch = plan.steps_per_epoch

        # Network and support.
        own_masks = workdir / "masks_initial.npz"
        goes_on = own_masks.exists() and any((workdir / "checkpoints" / "latest").glob("[0-9]*"))
        model, supports = build_sparse_model(
            config, dataset.num_classes, dataset.image_size, train, plan, own_masks if goes_on else None
        )
        shapes = {path: layer.kernel_shape for path, layer in models.prunable_layers(model).items()}
        image_shape = dataset.train_images.shape[1:]
        sizes = {path: math.prod(shape) for path, shape in shapes.items()}
        counts = {path: len(supports[path]) if path in supports else size for path, size in sizes.items()}
        if jax.process_index() == 0:
            print(layer_table(shapes, counts, sizes))
            if config.execution.explain:
                local = config.batch_size // jax.device_count()
                print(plan_table(planned(model, (local, *image_shape))))
        if plan.updates is not None and not plan.updates.moves_anything(counts, sizes):
            logger.warning(
                "sparse_training.method is %r, but no weight will ever move: updates come every %d steps before step %d, and "
                "only layers that are not full have any; lower sparse_training.update_every or the density",
                config.sparse_training.method, plan.updates.update_every, plan.updates.end_step,
            )  # fmt: skip

        # State, and where an earlier call left it.
        schedule = learning_rate_schedule(
            config.optimizer.learning_rate, config.optimizer.milestones, config.optimizer.decay_rate, steps_per_epoch
        )
        optimizer = make_optimizer(
            config.optimizer.name, schedule, momentum=config.optimizer.momentum,
            weight_decay=config.optimizer.weight_decay, fixup=config.model.name.startswith("fixup"),
        )  # fmt: skip
        for folder, its_config in records:
            record_config(folder, its_config)
        placement = loop.place_on_all_devices()
        graphs, state = create_state(model, optimizer, placement.axis_name)
        no_sums = zero_sums(max(1, len(graphs.counts)))
        state, sums = placement.put(state), placement.put(no_sums)
        train, validation, test = (placement.put(split) for split in (train, validation, test))
        checkpoints = Checkpoints(workdir / "checkpoints")

        def stored(state: TrainState) -> TrainState:
            """Return the state as checkpoints hold it whatever the run's form."""
            return to_compact(state, graphs.counts, optimizer)

        def running(state: TrainState) -> TrainState:
            """Return a state out of a checkpoint in the run's form."""
            return state if compact else placement.put(to_masked(state, graphs.shapes, optimizer))

        compact = is_compact(state)
        # Abstractly: the arrays themselves are given away with the first step.
        template = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            {"state": stored(state), "sums": sums},
        )
        trainable = sum(leaf.size for leaf in jax.tree.leaves(template["state"].params))
        flops = flops_account(model, (plan.batch_size, *image_shape), counts)
        account = storage_account(state, template["state"], graphs.shapes, optimizer)
        if jax.process_index() == 0:
            print(storage_table(account))
        restored = checkpoints.restore("latest", template)
        if restored is not None:
            state, sums = running(restored[1]["state"]), restored[1]["sums"]
            print(f"going on from step {restored[0]}")
        step = int(state.step)
        if step == 0 and jax.process_index() == 0:
            # Updates move the masks later on; where they started from stays on record.
            for name in ("masks_initial.npz", "masks.npz"):
                pruning.save_masks(workdir / name, _masks_of(supports, shapes))
        log = MetricsLog(workdir, step, config.tensorboard)
        if len(log.rows) < step // steps_per_epoch:
            raise UserError(
                f"{log.path} has {len(log.rows)} rows, but the run is {step // steps_per_epoch} epochs on; restore it or "
                "choose another directory"
            )

        def num_drop_at(step: int) -> np.ndarray:
            assert plan.updates is not None
            drop = plan.updates.drop_counts(step, counts, sizes)
            return np.array([drop[path] for path in graphs.counts], np.int32)

        # Training.
        every = config.checkpoint_every_steps
        programs = loop.compile_programs(plan, graphs, optimizer, placement, state, sums, train, validation, test)
        print(
            f"{config.model.name}, {trainable:,} trainable parameters, {steps_per_epoch} steps an epoch, "
            f"{jax.device_count()} {jax.devices()[0].platform} device(s), compiled in {programs.compile_seconds:.1f} s"
        )
        with listen_for_signals() as request:
            for epoch in range(step // steps_per_epoch, config.num_epochs):
                epoch_started, first_step = time.perf_counter(), step
                order = loop.order_of_epoch(epoch, plan, train, placement)
                progress = tqdm(
                    total=steps_per_epoch, initial=step % steps_per_epoch, desc=f"epoch {epoch + 1}/{config.num_epochs}",
                    leave=False, disable=not sys.stderr.isatty(), unit="step",
                )  # fmt: skip
                dispatches = loop.run_epoch(
                    programs, plan, placement, state, sums, train, order, step, log_every_steps=config.log_every_steps,
                    num_drop_at=num_drop_at,
                )  # fmt: skip
                for now, state, sums in dispatches:
                    progress.update(now - step)
                    before, step = step, now
                    if step % steps_per_epoch == 0:
                        break
                    if request.signal_number or (every and step // every > before // every):
                        loop.check_finite(sums, state)
                        checkpoints.save("latest", step, {"state": stored(state), "sums": sums})
                        _stop_if_asked(request, step)
                progress.close()
                loop.check_finite(sums, state)
                seconds = time.perf_counter() - epoch_started
                val_loss, val_accuracy = loop.means(programs.evaluate(state, validation))
                if not math.isfinite(val_loss):
                    raise NonFiniteLoss(step, "the validation loss is")
                best = log.best_row()
                row = {
                    "epoch": epoch + 1,
                    "step": step,
                    "train_loss": float(sums.loss) / steps_per_epoch,
                    "train_accuracy": int(sums.correct) / int(sums.images),
                    "val_loss": val_loss,
                    "val_accuracy": val_accuracy,
                    "learning_rate": float(schedule(step - 1)),
                    "images_per_second": (step - first_step) * plan.batch_size / seconds,
                }
                if plan.updates is not None:
                    row["weights_moved"] = dict(zip(graphs.counts, np.asarray(sums.moved).tolist(), strict=True))
                print(describe(row, config.num_epochs))
                if best is None or val_accuracy > best["val_accuracy"]:
                    checkpoints.save("best", step, {"state": stored(state)})
                log.append(row)
                sums = placement.put(no_sums)
                checkpoints.save("latest", step, {"state": stored(state), "sums": sums})
                _stop_if_asked(request, step)

        if plan.updates is not None:
            final = supports_by_path(jax.device_get(stored(state).supports))
            pruning.save_masks(workdir / "masks.npz", _masks_of(final, shapes))

        # Report: the last model and the best on validation, both on the test set.
        test_loss, test_accuracy = loop.means(programs.evaluate(state, test))
        best, restored = log.best_row(), checkpoints.restore("best", {"state": template["state"]})
        assert best is not None
        results = {
            "best_val_accuracy": best["val_accuracy"],
            "best_epoch": best["epoch"],
            "test_accuracy_best": None,
            "test_accuracy_final": test_accuracy,
            "test_loss_final": test_loss,
            "density_asked": None if config.pruning.method == "from_run" else config.pruning.density,
            "density": sum(counts.values()) / sum(sizes.values()),
            "layer_densities": {path: counts[path] / sizes[path] for path in sizes},
            "trainable_parameters": trainable,
            "storage_bytes": account,
            "flops": flops,
            "checkpoint_file_bytes": file_bytes(workdir / "checkpoints" / "latest" / str(step)),
            "seed": config.seed,
            "data": {
                "class_names": list(dataset.class_names),
                "image_size": dataset.image_size,
                "mean": list(map(float, plan.normalization.mean)),
                "std": list(map(float, plan.normalization.std)),
            },
            "compile_seconds": programs.compile_seconds,
            "total_seconds": time.perf_counter() - started,
            "environment": environment(),
        }
        if restored is not None and restored[0] == best["step"]:
            results["test_accuracy_best"] = loop.means(programs.evaluate(running(restored[1]["state"]), test))[1]
        else:
            logger.warning("the checkpoint of the best epoch %d is lost; test_accuracy_best is left out", best["epoch"])
        if jax.process_index() == 0:
            write_json(workdir / "results.json", results)
        checkpoints.close()
        log.close()
        print(last_line(results))
        return results


def _masks_of(
    supports: Mapping[str, np.ndarray | jax.Array], shapes: Mapping[str, Sequence[int]]
) -> dict[str, np.ndarray]:
    return {path: pruning.mask_of_support(np.asarray(support), shapes[path]) for path, support in supports.items()}


def _stop_if_asked(request: Any, step: int) -> None:
    if request.signal_number:
        raise Stopped(request.signal_number, step)
