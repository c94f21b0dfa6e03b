"""The initial state of a lottery ticket: another run's state after some of its epochs, with fewer weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dctps_jax import pruning
from dctps_jax.data import Dataset
from dctps_jax.defaults import FIELDS, get_config
from dctps_jax.errors import UserError
from dctps_jax.field import flat_fields
from dctps_jax.prunable import prunable_layers
from dctps_jax.runs.checkpoint import Saved, as_tree
from dctps_jax.runs.repair import supports_of
from dctps_jax.runs.source_run import SourceRun, checkpoint_of_epoch, find_source
from dctps_jax.training.forms import is_compact, to_compact, to_masked
from dctps_jax.training.loop import Setup
from dctps_jax.training.sparse_model import build_model
from dctps_jax.training.state import TrainState, create_state, supports_by_path
from dctps_jax.training.step import tree_of_kernels, with_masks

Rows = list[dict[str, Any]]


def rewound(config: Any, dataset: Dataset, state: TrainState, setup: Setup) -> tuple[int, TrainState, Rows]:
    """Return the initial step, state (on the devices) and rows of the metrics of a run with ``config``.

    ``state`` has new weights, and the masks that the run begins with. All other arrays come from the run in
    ``config.pruning.run`` at epoch ``config.pruning.rewind_epoch``: parameters, statistics, the optimiser's state. The
    rows up to this epoch are inherited.
    """
    spec, graphs, optimizer, placement = setup
    runs_compact = is_compact(state)
    source, epoch = find_source(config), config.pruning.rewind_epoch
    state = to_masked(state, graphs.shapes)
    masks = supports_by_path(state.supports)
    rows: Rows = []
    if epoch == 0 and source.rewind_epoch < 0:
        model = _initial_model(source, dataset)
        earlier = create_state(model, optimizer, placement.axis_name, state.averages is not None)[1]
        _check_same_arrays(earlier, state, source)
    else:
        saved = checkpoint_of_epoch(source, epoch, spec.steps_per_epoch)
        earlier = _state_of(saved, state, source, setup)
        rows = [row | {"inherited": True} for row in saved.record["rows"]]
    begun = with_masks(earlier, masks, tree_of_kernels(earlier, masks))
    begun = to_compact(begun, graphs.counts) if runs_compact else begun
    return epoch * spec.steps_per_epoch, placement.put(begun), rows


def _initial_model(source: SourceRun, dataset: Dataset) -> nnx.Module:
    """Return the network that a run began with, with masks that keep everything. It follows from the run's seed.

    Weights outside of the run's own masks are zero.
    """
    config = get_config()
    fields = {name: value for name, value in flat_fields(source.config) if name in FIELDS}
    with config.ignore_type():
        config.update_from_flattened_dict(fields)
    model = build_model(config, dataset.num_classes, dataset.image_size, dataset.channels)
    layers = prunable_layers(model)
    for path, mask in pruning.load_masks(source.folder / "masks_initial.npz").items():
        layers[path].set_mask(mask)
    for layer in layers.values():
        layer.set_mask(np.ones(layer.kernel_shape, bool))
    return model


def _state_of(saved: Saved, state: TrainState, source: SourceRun, setup: Setup) -> TrainState:
    """Return the masked state in a checkpoint of the source. Except for the masks it has the structure of ``state``."""
    _, graphs, _, placement = setup
    counts = {path: len(support) for path, support in supports_of(saved).items()}

    def as_stored(state: TrainState) -> TrainState:
        return to_compact(state, counts) if counts else state._replace(supports={})

    template = placement.abstract({"state": jax.eval_shape(as_stored, state)})
    try:
        tree = as_tree(saved, template, source.folder)
    except (UserError, KeyError) as error:
        raise _other_arrays(source) from error
    return to_masked(tree["state"], graphs.shapes)


def _check_same_arrays(earlier: TrainState, state: TrainState, source: SourceRun) -> None:
    def shapes(state: TrainState) -> Any:
        return jax.tree.map(jnp.shape, (state.params, state.batch_stats, state.frozen))

    if shapes(earlier) != shapes(state):
        raise _other_arrays(source)


def _other_arrays(source: SourceRun) -> UserError:
    return UserError(
        f"config.pruning.run is {source.folder}, whose arrays are those of another network or optimiser; give the run "
        "the config.model and config.optimizer of that one, with the same config.optimizer.ema_decay"
    )
