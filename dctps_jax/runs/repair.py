"""Rewrite the metrics and masks of a run if they are lost or damaged: its checkpoints hold their content."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dctps_jax import pruning
from dctps_jax.errors import UserError
from dctps_jax.files import digest_of, read_file
from dctps_jax.runs.checkpoint import Checkpoints, Saved, set_aside
from dctps_jax.runs.damage import DAMAGED
from dctps_jax.runs.metrics import content_of, read_rows, write_rows
from dctps_jax.runs.seal import is_sealed_as

logger = logging.getLogger("dctps_jax")

Masks = dict[str, np.ndarray]
Rows = list[dict[str, Any]]

SUPPORTS, INITIAL_SUPPORTS = "state/supports/", "initial_supports/"


def supports_of(saved: Saved) -> dict[str, np.ndarray]:
    """Return the positions of the trained weights in a checkpoint, by dotted path of the layers."""
    return {
        name.removeprefix(SUPPORTS).removesuffix("/support").replace("/", "."): array
        for name, array in saved.arrays.items()
        if name.startswith(SUPPORTS)
    }


def initial_supports_of(saved: Saved) -> dict[str, np.ndarray]:
    """Return the positions that the run began with: the checkpoint's current ones if its weights never move."""
    found = {
        name.removeprefix(INITIAL_SUPPORTS): array
        for name, array in saved.arrays.items()
        if name.startswith(INITIAL_SUPPORTS)
    }
    return found or supports_of(saved)


def masks_of(supports: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> Masks:
    """Return the masks of layers, given the positions of their trained weights and the shapes of their kernels."""
    return {path: pruning.mask_of_support(np.asarray(support), shapes[path]) for path, support in supports.items()}


def check_not_begun(workdir: Path) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` if the run of a directory had checkpoints but none is sound."""
    rows = read_rows(workdir / "metrics.jsonl")
    damaged = workdir / "checkpoints" / DAMAGED
    has_damaged = damaged.is_dir() and any(entry.name.startswith("latest_") for entry in damaged.iterdir())
    if rows or has_damaged:
        known = f"metrics.jsonl has {len(rows)} epochs" if rows else "there was one"
        where = f"; damaged ones are in {damaged}" if has_damaged else ""
        raise UserError(
            f"{workdir / 'checkpoints' / 'latest'} holds no sound checkpoint, but {known}{where}; restore a "
            f"checkpoint, or, to start again at epoch 1, remove metrics.jsonl and checkpoints from {workdir} or choose "
            "another directory"
        )


def mend_files(
    workdir: Path, step: int, rows: Rows | None, masks: Mapping[str, Masks], is_finished: bool = False
) -> None:
    """Write ``metrics.jsonl`` and the files of ``masks`` anew if they differ from the checkpoint of ``step``.

    The old files move to ``damaged/`` in ``workdir``, with a warning. Without ``rows``, as in checkpoints of format 2,
    the metrics stay as they are. After a kill the metrics may be a row behind the checkpoint. If a newer checkpoint was
    damaged, they are ahead of it; the run writes those rows again, unless it ``is_finished``.
    """
    if rows is not None and (fault := _fault_of_rows(workdir / "metrics.jsonl", step, rows, is_finished)):
        make_way(workdir / "metrics.jsonl", fault)
        write_rows(workdir / "metrics.jsonl", rows)
    for name, expected in masks.items():
        if fault := _fault_of_masks(workdir / name, expected):
            make_way(workdir / name, fault)
            pruning.save_masks(workdir / name, expected)


def mend_finished_run(workdir: Path, config: Any, results: Mapping[str, Any]) -> None:
    """Mend the files of a finished run from its last checkpoint.

    If only an older checkpoint is left, warn of that. If the last one is gone or does not know the files, warn of files
    that cannot be read or do not match the digests in ``results``.
    """
    saved = Checkpoints(workdir / "checkpoints", json.loads(config.to_json())).newest("latest")
    rows = None if saved is None else saved.record.get("rows")  # format 2 has none
    if saved is not None and rows is not None and len(rows) == config.num_epochs:
        shapes = saved.record["kernel_shapes"]
        masks = {
            "masks_initial.npz": masks_of(initial_supports_of(saved), shapes),
            "masks.npz": masks_of(supports_of(saved), shapes),
        }
        mend_files(workdir, saved.step, rows, masks, is_finished=True)
        return
    if saved is None:
        remedy = "no checkpoint is left that could make it anew"
    else:
        remedy = (
            "remove results.json and give the same command, which trains what comes after the older checkpoint again"
        )
        if rows is not None:
            logger.warning("the last checkpoint of %s is gone or damaged; to make it anew, %s", workdir, remedy)
    digests: dict[str, Callable[[Path], str]] = {
        "metrics.jsonl": _digest_of_rows,
        "masks_initial.npz": _digest_of_masks,
        "masks.npz": _digest_of_masks,
    }
    for name, digest_in in digests.items():
        try:
            if not is_sealed_as(results, name, digest_in(workdir / name)):
                logger.warning("%s is not what the run left there; %s", workdir / name, remedy)
        except UserError as error:
            logger.warning("%s", error)


def _digest_of_rows(path: Path) -> str:
    return digest_of(read_rows(path))


def _digest_of_masks(path: Path) -> str:
    return pruning.digest_of_masks(pruning.load_masks(path))


def make_way(path: Path, fault: str) -> None:
    """Move a file that will be written anew from the checkpoint to ``damaged/`` beside it, if it exists, and warn."""
    kept = ""
    if path.exists():
        kept = f"; what was there is in {set_aside(path, path.parent / DAMAGED, path.name)}"
    logger.warning("%s %s and is written anew from the checkpoint%s", path, fault, kept)


def _fault_of_rows(path: Path, step: int, rows: Rows, is_finished: bool) -> str | None:
    if not path.exists():
        return "is missing"
    try:
        found = read_rows(path)
    except (ValueError, OSError) as error:
        return f"is damaged ({error})"
    known, later = found[: len(rows)], found[len(rows) :]
    is_behind = not is_finished and len(known) == len(rows) - 1 and known == rows[:-1]
    if (known != rows and not is_behind) or any(is_finished or row["step"] <= step for row in later):
        return "differs from the checkpoint"
    if is_finished and read_file(path) != content_of(rows):
        return "ends with something else than rows"
    return None


def _fault_of_masks(path: Path, expected: Masks) -> str | None:
    if not path.exists():
        return "is missing"
    try:
        found = pruning.load_masks(path)
    except UserError as error:
        return f"is damaged ({error})"
    if found.keys() != expected.keys() or not all(np.array_equal(found[name], expected[name]) for name in expected):
        return "differs from the checkpoint"
    return None
