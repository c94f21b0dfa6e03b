"""The finished run that a lottery ticket comes from: which of its trained weights stay, and its early checkpoints.

Frankle & Carbin 2019 train, prune the smallest weights, and train the others again from their initial values. Frankle
et al. 2020 train them from their values after some epochs. A round is a run; its source is the run of the round before.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dctps_jax import pruning
from dctps_jax.errors import UserError
from dctps_jax.field import find_field
from dctps_jax.pruning.groups import make_groups
from dctps_jax.pruning.layer_rules import layer_rules
from dctps_jax.runs.checkpoint import Saved, last_is_lost, read_saved, steps_in
from dctps_jax.runs.workdir import read_config, read_results


class SourceRun(NamedTuple):
    """A finished run of one seed: its directory, and its config as a JSON object."""

    folder: Path
    config: dict[str, Any]

    @property
    def rewind_epoch(self) -> int:
        """The epoch at which the source itself began; -1 if it began with initial weights."""
        found, is_there = find_field(self.config, "pruning.rewind_epoch")
        return found if is_there else -1


def rewinds(config: Any) -> bool:
    """Return whether a run begins with weights of another run."""
    return config.pruning.method == "from_run" and config.pruning.rewind_epoch >= 0


def source_folder(config: Any) -> Path:
    """Return the directory in ``config.pruning.run``; if that has several seeds, the directory of the config's seed.

    Raises :class:`~dctps_jax.errors.UserError` if it has only other seeds.
    """
    folder = Path(config.pruning.run)
    of_seed = folder / f"seed_{config.seed}"
    if of_seed.is_dir():
        return of_seed
    if others := sorted(folder.glob("seed_*/")):
        raise UserError(
            f"config.pruning.run is {folder}, which holds several seeds but not seed {config.seed}; name one of them, "
            f"e.g. {others[0]}"
        )
    return folder


def find_source(config: Any) -> SourceRun:
    """Return the run in the :func:`source_folder`.

    Raises :class:`~dctps_jax.errors.UserError` if it is not finished.
    """
    folder = source_folder(config)
    if not (folder / "config.json").exists():
        raise UserError(f"config.pruning.run is {folder}, which holds no run; name the directory of a finished run")
    read_results(folder)  # refuses a run that is not finished
    return SourceRun(folder, read_config(folder))


def prune_trained_weights(config: Any, shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Return the positions of the trained weights of the largest magnitude, as many as ``config.pruning`` asks for.

    Only the trained part S of a kernel counts. Raises :class:`~dctps_jax.errors.UserError` if the source has another
    network, trains fewer weights than asked for, or has lost its last checkpoint.
    """
    source, settings = find_source(config), config.pruning
    masks = pruning.load_run_masks(source.folder) or {path: np.ones(shape, bool) for path, shape in shapes.items()}
    pruning.check_masks(masks, shapes, source.folder)
    last, end = read_saved(source.folder / "checkpoints", "latest", source.config), read_results(source.folder)["step"]
    if last.step != end:
        raise last_is_lost(source.folder, last.step, end)
    scores = {}
    for path, mask in masks.items():
        place = path.replace(".", "/")
        kernel, count = last.arrays.get(f"state/params/{place}/kernel"), int(mask.sum())
        if kernel is None or kernel.size != count:
            raise UserError(
                f"{source.folder} holds {'no' if kernel is None else kernel.size} weights of a layer {path}, and "
                f"{count} are expected; name a run of the same network"
            )
        scores[path] = np.full(mask.shape, -1, kernel.dtype)
        scores[path][mask] = np.abs(kernel).ravel()
    groups = make_groups(
        shapes,
        settings.density,
        layer_rules(settings.dense_layers, settings.layer_densities, settings.pattern),
        scope=settings.scope,
        allocation=settings.allocation or None,
    )
    groups.check_room(masks)
    # With an offset, a weight that no gradient has reached is still 0.
    return {path: np.flatnonzero(mask) for path, mask in groups.select(scores, 0, masks, allow_zero=True).items()}


def checkpoint_of_epoch(source: SourceRun, epoch: int, steps_per_epoch: int) -> Saved:
    """Return the checkpoint that the source kept of an epoch.

    Raises :class:`~dctps_jax.errors.UserError` if it kept none, or had epochs of another length.
    """
    folder, step = source.folder / "checkpoints", epoch * steps_per_epoch
    kept = steps_in(folder / "kept")
    if step not in kept:
        if source.rewind_epoch >= 0:
            advice = f"it began at epoch {source.rewind_epoch} itself, rewind to that one"
        else:
            advice = (
                f"train it in a new directory with --config.keep_epochs='({epoch},)', or rewind to 0, its initial "
                "weights"
            )
        raise UserError(
            f"config.pruning.rewind_epoch is {epoch}, and {source.folder} kept no checkpoint of step {step} "
            f"({epoch} · {steps_per_epoch} steps of an epoch; it kept steps "
            f"{', '.join(map(str, kept)) or 'of no epoch'}); {advice}"
        )
    return read_saved(folder, "kept", source.config, step)
