"""The network of one seed: its layers with their supports, what is trained of them, and what its programs need."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dctps_jax.accounts.execution_report import execution_report
from dctps_jax.accounts.flops import flops_account
from dctps_jax.accounts.layer_table import layer_table
from dctps_jax.conversion_table import Report, conversion_report
from dctps_jax.distributed.agreement import check_equal, on_first
from dctps_jax.models import prunable_layers
from dctps_jax.runs.checkpoint import Saved
from dctps_jax.runs.repair import supports_of
from dctps_jax.training.from_config import make_optimizer_and_schedule, warn_if_nothing_moves
from dctps_jax.training.loop import Setup
from dctps_jax.training.mask_updates import WeightCounts
from dctps_jax.training.own_network import check_same_program, describe_program
from dctps_jax.training.placement import Placement
from dctps_jax.training.progress import announced
from dctps_jax.training.seed_data import SeedData
from dctps_jax.training.sparse_model import Supports, build_sparse_model, chooses_by_score, weight_counts
from dctps_jax.training.state import TrainState, create_state
from dctps_jax.training.step_spec import StepSpec
from dctps_jax.user_functions import is_import_path


class SeedNetwork(NamedTuple):
    """What is known of a network, by dotted path of its prunable layers.

    ``supports`` are the present ones; a dense network has none. ``weights`` says how many weights are trained at each
    step. ``described`` has the entry "network" for a network of the user's own, and is empty otherwise.
    """

    setup: Setup
    schedule: Callable[[int], Any]
    shapes: dict[str, tuple[int, ...]]
    supports: Supports
    weights: WeightCounts
    described: dict[str, Any]
    report: Report
    flops: Mapping[str, Any]

    @property
    def density_of_all_parameters(self) -> float:
        """Trained parameters ÷ all parameters, biases and normalisation included, at the end of the run."""
        parameters = sum(row.parameters for row in self.report.rows)
        trained = sum(row.trained for row in self.report.rows)
        if self.supports:  # gradual pruning has not removed all weights yet
            trained -= sum(map(len, self.supports.values())) - sum(self.weights.last.values())
        return trained / parameters


def build_network(
    config: Any, workdir: Path, data: SeedData, spec: StepSpec, saved: Saved | None, placement: Placement
) -> tuple[SeedNetwork, TrainState]:
    """Build the network that ``config`` describes, show it in tables, and return its state at the start.

    A run that goes on takes the supports of its checkpoint ``saved``. Raises :class:`~dctps_jax.errors.UserError` where
    the network cannot work with the config or the data, or is not the one that the run began with.
    """
    dataset = data.dataset
    described: dict[str, Any] = {}
    if is_import_path(config.model.name):
        described = {"network": describe_program(config, dataset.num_classes, dataset.image_size, dataset.channels)}
        check_equal("the functions", "give all hosts the same program", dict, described)
        known = None if saved is None else saved.record.get("network")
        on_first(check_same_program, workdir, known, described["network"])
    is_scored = saved is None and chooses_by_score(config)
    with announced(f"choosing the weights by {config.pruning.method} …" if is_scored else "building the network …"):
        saved_supports = None if saved is None else supports_of(saved)
        model, supports = build_sparse_model(config, dataset, data.train_split, spec, saved_supports)
    shapes = {path: layer.kernel_shape for path, layer in prunable_layers(model).items()}
    weights = weight_counts(config, spec, shapes, supports)
    optimizer, schedule = make_optimizer_and_schedule(config, spec.steps_per_epoch)
    report = conversion_report(model)
    if described:
        print(report)
    print(layer_table(shapes, weights.last, weights.sizes))
    if weights.first != weights.last:
        print(f"the table is of the end; the first steps train {100 * weights.density_at(0):.4g} % of the weights")
    if config.execution.explain:
        local = config.batch_size // placement.num_devices
        print(execution_report(model, jax.ShapeDtypeStruct((local, *data.image_shape), jnp.float32)))
    warn_if_nothing_moves(config, spec, weights.last, weights.sizes)
    in_training = weights.means(config.num_epochs * spec.steps_per_epoch)
    flops = flops_account(model, (spec.batch_size, *data.image_shape), weights.last, in_training)
    graphs, state = create_state(model, optimizer, placement.axis_name, spec.ema_decay > 0, placement.put)
    setup = Setup(spec, graphs, optimizer, placement)
    return SeedNetwork(setup, schedule, shapes, supports, weights, described, report, flops), state
