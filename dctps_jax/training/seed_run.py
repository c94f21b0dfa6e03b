"""The run of one seed: what it trains, where it stands, and what it leaves in its directory."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dctps_jax import data, models, pruning
from dctps_jax.analysis.flops import flops_account
from dctps_jax.analysis.layer_table import layer_table
from dctps_jax.analysis.plan_table import plan_table, planned
from dctps_jax.analysis.storage import file_bytes, storage_account, storage_table
from dctps_jax.data.batches import Split, split_training
from dctps_jax.errors import UserError
from dctps_jax.training import loop
from dctps_jax.training.checkpoint import Checkpoints
from dctps_jax.training.forms import to_compact, to_masked
from dctps_jax.training.metrics import MetricsLog, describe
from dctps_jax.training.optimizer import learning_rate_schedule, make_optimizer
from dctps_jax.training.report import environment, last_line
from dctps_jax.training.setup import build_sparse_model, make_plan
from dctps_jax.training.state import TrainState, create_state, supports_by_path
from dctps_jax.training.step import Sums, zero_sums
from dctps_jax.training.stopping import NonFiniteLoss
from dctps_jax.training.workdir import write_json

logger = logging.getLogger("dctps_jax")


class SeedRun:
    """One seed's share of a run, in a directory of its own: the caller takes the steps, alone or beside other seeds.

    Built, it has the rows of its images, its network and support, and has written nothing; :meth:`start` makes its state or finds the one that an
    earlier call left. Raises :class:`~dctps_jax.errors.UserError` where the config cannot work with the data.
    """

    def __init__(self, config: Any, workdir: Path, dataset: data.Dataset, is_alone: bool = True):
        self.started = time.perf_counter()
        self.config, self.workdir, self.dataset = config, workdir, dataset
        self.label = "" if is_alone else f"seed {config.seed}  "
        images = Split(dataset.train_images, dataset.train_labels)
        self.rows, self.held_out = split_training(len(images.labels), config.data.train_fraction, config.seed)
        train = images.at(self.rows)
        self.plan = make_plan(config, dataset, train)

        own_masks = workdir / "masks_initial.npz"
        goes_on = own_masks.exists() and any((workdir / "checkpoints" / "latest").glob("[0-9]*"))
        self.model, self.supports = build_sparse_model(
            config, dataset.num_classes, dataset.image_size, train, self.plan, own_masks if goes_on else None
        )
        layers = models.prunable_layers(self.model)
        self.is_compact = any(layer.support is not None for layer in layers.values())
        self.shapes = {path: layer.kernel_shape for path, layer in layers.items()}
        self.sizes = {path: math.prod(shape) for path, shape in self.shapes.items()}
        self.counts = {
            path: len(self.supports[path]) if path in self.supports else size for path, size in self.sizes.items()
        }
        self.schedule = learning_rate_schedule(
            config.optimizer.learning_rate, config.optimizer.milestones, config.optimizer.decay_rate,
            self.plan.steps_per_epoch,
        )  # fmt: skip
        self.optimizer = make_optimizer(
            config.optimizer.name, self.schedule, momentum=config.optimizer.momentum,
            weight_decay=config.optimizer.weight_decay, fixup=config.model.name.startswith("fixup"),
        )  # fmt: skip

    def print_layers(self) -> None:
        """Print the table of the layers, the plan where it is asked for, and a warning where no weight will move."""
        config, plan = self.config, self.plan
        if jax.process_index() == 0:
            print(layer_table(self.shapes, self.counts, self.sizes))
            if config.execution.explain:
                local = config.batch_size // jax.device_count()
                print(plan_table(planned(self.model, (local, *self.dataset.train_images.shape[1:]))))
        if plan.updates is not None and not plan.updates.moves_anything(self.counts, self.sizes):
            logger.warning(
                "sparse_training.method is %r, but no weight will ever move: updates come every %d steps before step %d, and "
                "only layers that are not full have any; lower sparse_training.update_every or the density",
                config.sparse_training.method, plan.updates.update_every, plan.updates.end_step,
            )  # fmt: skip

    def start(self, placement: loop.Placement) -> None:
        """Make the initial state on the devices, and what a restart will have to look like. The network itself is given up."""
        self.placement = placement
        self.graphs, state = create_state(self.model, self.optimizer, placement.axis_name)
        self.no_sums = zero_sums(max(1, len(self.graphs.counts)))
        self.state, self.sums = placement.put(state), placement.put(self.no_sums)
        # Abstractly: the arrays themselves are given away with the first step.
        self.template = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            {"state": self._stored(self.state), "sums": self.sums},
        )
        self.trainable = sum(leaf.size for leaf in jax.tree.leaves(self.template["state"].params))
        image_shape = self.dataset.train_images.shape[1:]
        self.flops = flops_account(self.model, (self.plan.batch_size, *image_shape), self.counts)
        self.account = storage_account(state, self.template["state"], self.graphs.shapes, self.optimizer)
        self.checkpoints = Checkpoints(self.workdir / "checkpoints")
        self.restored: Any = None
        del self.model

    def print_storage(self) -> None:
        if jax.process_index() == 0:
            print(storage_table(self.account))

    def go_on(self) -> int:
        """Take up the newest state that an earlier call left, the initial one if there is none; return where it stands."""
        self.restored = self.checkpoints.restore("latest", self.template)
        return 0 if self.restored is None else self.restored[0]

    def hand_over(self) -> tuple[TrainState, Sums]:
        """Return state and sums to take steps from, once: the steps give them away."""
        state, sums = self.state, self.sums
        if self.restored is not None:
            state, sums = self._running(self.restored[1]["state"]), self.restored[1]["sums"]
        del self.state, self.sums, self.restored
        return state, sums

    def open_records(self, step: int) -> None:
        """Open the log of metrics at ``step``; a run that begins writes its masks first."""
        if step == 0 and jax.process_index() == 0:
            # Updates move the masks later on; where they started from stays on record.
            for name in ("masks_initial.npz", "masks.npz"):
                pruning.save_masks(self.workdir / name, _masks_of(self.supports, self.shapes))
        self.log = MetricsLog(self.workdir, step, self.config.tensorboard)
        epochs = step // self.plan.steps_per_epoch
        if len(self.log.rows) < epochs:
            raise UserError(
                f"{self.log.path} has {len(self.log.rows)} rows, but the run is {epochs} epochs on; restore it or "
                "choose another directory"
            )

    def num_drop_at(self, step: int) -> np.ndarray:
        """Return how many weights each layer drops at a step that moves weights."""
        assert self.plan.updates is not None
        drop = self.plan.updates.drop_counts(step, self.counts, self.sizes)
        return np.array([drop[path] for path in self.graphs.counts], np.int32)

    def save(self, state: TrainState, sums: Sums, *, step: int) -> None:
        self.checkpoints.save("latest", step, {"state": self._stored(state), "sums": sums})

    def end_epoch(
        self, state: TrainState, sums: Sums, evaluated: Sums, *, epoch: int, step: int, images_per_second: float
    ) -> None:
        """Print and record an epoch, and save its state, as the best one where it is.

        ``images_per_second`` are those of all seeds of the program.
        """
        val_loss, val_accuracy = loop.means(evaluated)
        if not math.isfinite(val_loss):
            raise NonFiniteLoss(step, "the validation loss is", [self.config.seed] if self.label else ())
        best = self.log.best_row()
        row = {
            "epoch": epoch + 1,
            "step": step,
            "train_loss": float(sums.loss) / self.plan.steps_per_epoch,
            "train_accuracy": int(sums.correct) / int(sums.images),
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "learning_rate": float(self.schedule(step - 1)),
            "images_per_second": images_per_second,
        }
        if self.plan.updates is not None:
            row["weights_moved"] = dict(zip(self.graphs.counts, np.asarray(sums.moved).tolist(), strict=True))
        print(self.label + describe(row, self.config.num_epochs))
        if best is None or val_accuracy > best["val_accuracy"]:
            self.checkpoints.save("best", step, {"state": self._stored(state)})
        self.log.append(row)
        self.save(state, self.placement.put(self.no_sums), step=step)

    def best_state(self) -> TrainState | None:
        """Return the state that was best on validation; None, with a warning, where its checkpoint is lost."""
        best, restored = self.log.best_row(), self.checkpoints.restore("best", {"state": self.template["state"]})
        assert best is not None
        if restored is not None and restored[0] == best["step"]:
            return self._running(restored[1]["state"])
        logger.warning(
            "%sthe checkpoint of the best epoch %d is lost; test_accuracy_best is left out", self.label, best["epoch"]
        )
        return None

    def finish(
        self,
        step: int,
        state: TrainState,
        tested: Sums,
        tested_best: Sums | None,
        compile_seconds: float,
        seeds_side_by_side: int,
    ) -> dict[str, Any]:
        """Write ``results.json`` out of the evaluations of the last and the best state on the test set; return its content."""
        if self.plan.updates is not None:
            final = supports_by_path(jax.device_get(self._stored(state).supports))
            pruning.save_masks(self.workdir / "masks.npz", _masks_of(final, self.shapes))
        best = self.log.best_row()
        assert best is not None
        test_loss, test_accuracy = loop.means(tested)
        pruning_options, normalization = self.config.pruning, self.plan.normalization
        results = {
            "best_val_accuracy": best["val_accuracy"],
            "best_epoch": best["epoch"],
            "test_accuracy_best": None if tested_best is None else loop.means(tested_best)[1],
            "test_accuracy_final": test_accuracy,
            "test_loss_final": test_loss,
            "density_asked": None if pruning_options.method == "from_run" else pruning_options.density,
            "density": sum(self.counts.values()) / sum(self.sizes.values()),
            "layer_densities": {path: self.counts[path] / self.sizes[path] for path in self.sizes},
            "trainable_parameters": self.trainable,
            "storage_bytes": self.account,
            "flops": self.flops,
            "checkpoint_file_bytes": file_bytes(self.workdir / "checkpoints" / "latest" / str(step)),
            "seed": self.config.seed,
            "data": {
                "class_names": list(self.dataset.class_names),
                "image_size": self.dataset.image_size,
                "mean": list(map(float, normalization.mean)),
                "std": list(map(float, normalization.std)),
            },
            "seeds_side_by_side": seeds_side_by_side,
            "compile_seconds": compile_seconds,
            "total_seconds": time.perf_counter() - self.started,
            "environment": environment(),
        }
        if jax.process_index() == 0:
            write_json(self.workdir / "results.json", results)
        self.checkpoints.close()
        self.log.close()
        print(self.label + last_line(results))
        return results

    def _stored(self, state: TrainState) -> TrainState:
        """Return the state as checkpoints hold it whatever the run's form."""
        return to_compact(state, self.graphs.counts, self.optimizer)

    def _running(self, state: TrainState) -> TrainState:
        """Return a state out of a checkpoint in the run's form."""
        return state if self.is_compact else self.placement.put(to_masked(state, self.graphs.shapes, self.optimizer))


def _masks_of(
    supports: Mapping[str, np.ndarray | jax.Array], shapes: Mapping[str, Sequence[int]]
) -> dict[str, np.ndarray]:
    return {path: pruning.mask_of_support(np.asarray(support), shapes[path]) for path, support in supports.items()}
