"""Runs that grow: more epochs or seeds in a directory that has some, as if the run had started with them."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from dctps_jax.defaults import FIELDS
from dctps_jax.errors import UserError
from dctps_jax.field import flat_fields
from dctps_jax.files import write_whole
from dctps_jax.runs.checkpoint import set_aside
from dctps_jax.runs.damage import DAMAGED
from dctps_jax.runs.workdir import FILES, grown, read_config, record_config, write_json

# Files that a run of one seed may have in its directory besides FILES.
MORE_FILES = (DAMAGED, "wandb", "trackio", "results_*_epochs.json", "masks_*_epochs.npz")
# Files that only the directory of a single seed has.
OF_ONE_SEED = tuple(name for name in FILES if name not in ("results.json", "data.json"))


def check_growth(workdir: Path, config: Any, num_steps: int, steps_per_epoch: int) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` unless a run that took ``num_steps`` can have ``config.num_epochs``.

    It can if these are not fewer epochs than it has begun, and if no field would have set other values for those.
    """
    if not (workdir / "config.json").exists() or "num_epochs" not in grown(workdir, config):
        return
    before = config.copy_and_resolve_references()
    before.num_epochs = read_config(workdir)["num_epochs"]
    begun = math.ceil(num_steps / steps_per_epoch)
    if begun > config.num_epochs:
        kept = workdir / f"results_{config.num_epochs}_epochs.json"
        raise UserError(
            f"--workdir {workdir} has trained for {begun} epochs, and config.num_epochs is {config.num_epochs}; ask "
            f"for at least {begun}, or choose another directory"
            + (f" (the results after {config.num_epochs} epochs are in {kept})" if kept.exists() else "")
        )
    for name, field in FIELDS.items():
        if field.by_step is None:
            continue
        then, now = (field.by_step.values(each, steps_per_epoch, begun * steps_per_epoch) for each in (before, config))
        if (then != now).any():
            raise UserError(
                f"--workdir {workdir} cannot go from config.num_epochs={before.num_epochs} to {config.num_epochs}: "
                f"config.{name} is {dict(flat_fields(config))[name]!r}, which with {config.num_epochs} epochs sets "
                f"another {field.by_step.words} from step {np.argmax(then != now) + 1} on, and {begun} epochs are "
                f"trained; keep {before.num_epochs}, or train {config.num_epochs} in another directory"
            )


def record_growth(workdir: Path, config: Any) -> None:
    """Write the config of a run into its directory, see :func:`~dctps_jax.runs.workdir.record_config`.

    If the run grows, first rename its results and moved masks, e.g. to ``results_2_epochs.json``. The run then counts
    as unfinished.
    """
    if not (workdir / "config.json").exists() or not (fields := grown(workdir, config)):
        record_config(workdir, config)
        return
    there = read_config(workdir)
    size = "_".join(f"{there[name]}_{name.removeprefix('num_')}" for name in fields)
    changes = " and ".join(f"{name} from {there[name]} to {config[name]}" for name in fields)
    kept = ""
    if (workdir / "results.json").exists():
        _keep_masks(workdir, f"masks_{size}.npz")
        kept = f"; the earlier results are in {set_aside(workdir / 'results.json', workdir, f'results_{size}.json')}"
    print(f"{workdir.name} grows, {changes}{kept}")
    write_json(workdir / "config.json", there | {name: config[name] for name in fields})


def _keep_masks(workdir: Path, name: str) -> None:
    """Rename masks that have moved. Until the run is finished, ``masks.npz`` then holds the masks of its start."""
    first, last = workdir / "masks_initial.npz", workdir / "masks.npz"
    if first.is_file() and last.is_file() and first.read_bytes() != last.read_bytes():
        set_aside(last, workdir, name)
        write_whole(last, first.read_bytes())


def holds_one_seed(workdir: Path) -> bool:
    """Return whether a directory belongs to a run that was started with one seed."""
    return (workdir / "config.json").exists() and read_config(workdir).get("num_seeds", 1) == 1


def move_into_seed(workdir: Path, config: Any) -> None:
    """Turn the directory of a finished run of one seed into one of several seeds: its files move to ``seed_N``.

    A move that was interrupted is finished. Raises :class:`~dctps_jax.errors.UserError` if files are in its way.
    """
    is_one, folder = holds_one_seed(workdir), workdir / f"seed_{config.seed}"
    if is_one or any((workdir / name).exists() for name in OF_ONE_SEED):
        # Files that both kinds of directory have move first: the new run writes none of them before all have moved.
        patterns = ("results.json", "data.json", *MORE_FILES, *OF_ONE_SEED)
        sources = [source for pattern in patterns for source in sorted(workdir.glob(pattern))]
        for source in sources:
            if (folder / source.name).exists():
                raise UserError(f"{folder / source.name} is in the way of {source}, which has to move there; remove it")
        if is_one:
            there = read_config(workdir)
            folder.mkdir(exist_ok=True)
            write_json(folder / "config.json", there)
            write_json(workdir / "config.json", there | {"num_seeds": config.num_seeds})
        for source in sources:
            os.rename(source, folder / source.name)
        print(f"the run with seed {config.seed} is in {folder} now")
