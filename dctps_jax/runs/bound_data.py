"""The data that a run is bound to: ``data.json`` describes them, and other data are refused."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dctps_jax.data import Dataset
from dctps_jax.errors import UserError
from dctps_jax.files import read_json
from dctps_jax.runs.repair import make_way
from dctps_jax.runs.workdir import write_json

FILE = "data.json"


def describe_data(dataset: Dataset) -> dict[str, Any]:
    """Return what tells data sets apart: numbers of images, classes, and a digest of the decoded images and labels."""
    size = dataset.image_size
    return {
        "train_images": len(dataset.train_labels),
        "test_images": len(dataset.test_labels),
        "image_size": list(size) if isinstance(size, tuple) else size,
        "class_names": list(dataset.class_names),
        "fingerprint": dataset.fingerprint,
    }


def describe_split(train_rows: np.ndarray, validation_rows: np.ndarray) -> dict[str, str]:
    """Return a digest of which images train and which validate."""
    sha = hashlib.sha256()
    for rows in (train_rows, validation_rows):
        sha.update(f"{len(rows)}\n".encode() + np.asarray(rows, "<i8").tobytes())
    return {"split": sha.hexdigest()}


def check_same_data(workdir: Path, data: dict[str, Any], known: dict[str, Any] | None = None) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` if a run was trained on other data than ``data``.

    The message names what changed. ``known`` is the checkpoint's description of the data. Without it ``data.json``
    counts; a run of version 0.1.0 has none.
    """
    if known is None:
        if not (workdir / FILE).exists():
            return
        known = read_json(workdir / FILE)
        if not isinstance(known, dict):
            raise UserError(f"{workdir / FILE} does not describe data; restore it or choose another directory")
    changes = _changes(known, data)
    if changes:
        raise UserError(
            f"--workdir {workdir} belongs to a run on other data: {', '.join(changes)}; restore the data that it was "
            "trained on, or choose another directory"
        )


def record_data(workdir: Path, data: dict[str, Any]) -> None:
    """Bind a directory to its data. :func:`check_same_data` must have compared them with those of its run before."""
    path = workdir / FILE
    if path.is_file() and _holds(path, data):
        return
    if path.exists():
        make_way(path, "is not what the checkpoint knows")
    write_json(path, data)


def _holds(path: Path, data: dict[str, Any]) -> bool:
    try:
        return read_json(path) == data
    except UserError:
        return False


def _changes(known: dict[str, Any], now: dict[str, Any]) -> list[str]:
    changes = []
    for field, what in (
        ("train_images", "training images"),
        ("test_images", "test images"),
        ("image_size", "pixels of the images' height"),
    ):
        if known.get(field) != now[field]:
            changes.append(f"{what} ({known.get(field, 'unknown')} then, {now[field]} now)")
    if known.get("class_names") != now["class_names"]:
        changes.append(f"classes ({_difference(known.get('class_names', []), now['class_names'])})")
    if not changes and known.get("fingerprint") != now["fingerprint"]:
        changes.append("the content of images or labels")
    if not changes and "split" in now and known.get("split") != now["split"]:
        changes.append("the split into images to train on and to validate on")
    return changes


def _difference(before: Sequence[str], now: Sequence[str]) -> str:
    gone = [name for name in before if name not in now]
    new = [name for name in now if name not in before]
    parts = [f"{what}: {', '.join(names[:5])}" for what, names in (("gone", gone), ("new", new)) if names]
    return "; ".join(parts) or "in another order"
