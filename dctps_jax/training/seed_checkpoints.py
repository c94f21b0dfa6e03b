"""The checkpoints of one seed: its states as files hold them, whatever the form that the run has them in."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from dctps_jax import pruning
from dctps_jax.runs.checkpoint import Checkpoints, Saved, as_tree
from dctps_jax.runs.repair import initial_supports_of
from dctps_jax.training.forms import is_compact, to_compact, to_masked
from dctps_jax.training.seed_data import SeedData
from dctps_jax.training.seed_network import SeedNetwork
from dctps_jax.training.state import TrainState
from dctps_jax.training.step import Sums

Rows = Sequence[dict[str, Any]]


class SeedCheckpoints:
    """Writes the states of a run as checkpoints, and reads them. ``step`` is always the one that a state stands at.

    ``initial_supports`` are those that the run began with. Updates move the supports, so they stay on record.
    """

    def __init__(self, checkpoints: Checkpoints, data: SeedData, network: SeedNetwork, state: TrainState):
        """``state`` is in the form that the run trains in."""
        self.checkpoints = checkpoints
        self.data, self.network = data, network
        self.runs_compact = is_compact(state)
        self.initial_supports = network.supports

    def stored(self, step: int, state: TrainState) -> TrainState:
        """Return a state as checkpoints hold it."""
        placement = self.network.setup.placement
        return to_compact(placement.for_files(state), self.network.weights.at(step))

    def shapes_of_stored(self, step: int, state: TrainState) -> TrainState:
        """Return what :meth:`stored` would, abstractly."""
        placement = self.network.setup.placement
        # Of a new function: JAX remembers the shapes that an old one gave.
        found = jax.eval_shape(lambda state: to_compact(state, self.network.weights.at(step)), state)
        return placement.abstract_for_files(found)

    def save(self, step: int, state: TrainState, sums: Sums, rows: Rows) -> None:
        """Save what the run goes on from, after the epochs ``rows``."""
        spec, graphs, _, _ = self.network.setup
        tree: dict[str, Any] = {"state": self.stored(step, state), "sums": sums}
        if spec.updates is not None:
            tree["initial_supports"] = self.initial_supports
        record = {"data": self.data.described, "kernel_shapes": graphs.shapes, "rows": rows} | self.network.described
        self.checkpoints.save("latest", step, tree, record)

    def save_best(self, step: int, state: TrainState) -> None:
        self.checkpoints.save("best", step, {"state": self.stored(step, state)}, {"data": self.data.described})

    def keep(self, step: int, state: TrainState, rows: Rows) -> None:
        """Save a checkpoint that no later one replaces."""
        record = {"data": self.data.described, "rows": rows}
        self.checkpoints.save("kept", step, {"state": self.stored(step, state)}, record)

    def restore(self, saved: Saved, state: TrainState, sums: Sums) -> tuple[TrainState, Sums]:
        """Return what ``saved`` holds, in the form of ``state`` and ``sums``."""
        placement = self.network.setup.placement
        template = {"state": self.shapes_of_stored(saved.step, state), "sums": placement.abstract(sums)}
        tree = as_tree(saved, template, self.checkpoints.folder)
        self.initial_supports = initial_supports_of(saved)
        if not saved.record and self.network.setup.spec.updates is not None:  # of format 2
            masks = pruning.load_masks(self.checkpoints.folder.parent / "masks_initial.npz")
            self.initial_supports = {path: np.flatnonzero(mask) for path, mask in masks.items()}
        return self._running(tree["state"]), tree["sums"]

    def restore_best(self, saved: Saved, state: TrainState) -> TrainState:
        """Return the state in ``saved``, a checkpoint of the best epoch, in the form of ``state``."""
        template = {"state": self.shapes_of_stored(saved.step, state)}
        return self._running(as_tree(saved, template, self.checkpoints.folder)["state"])

    def _running(self, state: TrainState) -> TrainState:
        """Return a state out of a checkpoint in the form of the run, on its devices."""
        _, graphs, _, placement = self.network.setup
        return placement.put(state if self.runs_compact else to_masked(state, graphs.shapes))
