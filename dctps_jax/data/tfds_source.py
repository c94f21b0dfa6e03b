"""Data sets that TFDS has prepared, read without TensorFlow, which takes the array_record format."""

import json
import logging
import re
from pathlib import Path
from typing import Any, cast

import numpy as np

from dctps_jax.data.cache import Decoded, Split
from dctps_jax.errors import UserError

logger = logging.getLogger("dctps_jax")

_INFO = "dataset_info.json"
_BLOCK = 1024


def find_prepared(name: str, folder: Path) -> Path | None:
    """Returns the directory with the newest version of the data set `name` that TFDS prepared in array_record format.

    Looked at are `<folder>/<name>/<version>` and `folder` itself. None where there is none. One in another format is
    passed over with a warning, since reading it would take TensorFlow. Raises UserError where its dataset_info.json is
    damaged or, in `folder` itself, belongs to another data set.
    """
    versions = [path.parent for path in (folder / name).glob(f"*/{_INFO}") if re.fullmatch(r"[\d.]+", path.parent.name)]
    versions.sort(key=lambda path: [int(number) for number in path.name.split(".") if number])
    candidates = [*reversed(versions), *([folder] if (folder / _INFO).is_file() else [])]
    for candidate in candidates:
        path = candidate / _INFO
        try:
            info = json.loads(path.read_bytes())
            found, file_format = info["name"], info.get("fileFormat", "tfrecord")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} cannot be read ({error}); prepare the data set again with TFDS.") from error
        if found != name:
            raise UserError(
                f"{path} belongs to the data set '{found}', but data.name is '{name}'; set data.dir to another folder."
            )
        if file_format == "array_record":
            return candidate
        logger.warning(
            "%s is in %s format, which only TensorFlow can read, and is passed over; prepare it with "
            "file_format='array_record' to use it",
            candidate,
            file_format,
        )
    return None


def decode(prepared: Path, image_size: int, num_classes: int) -> Decoded:
    """Reads the features "image" and "label" of the splits "train" and "test" in a directory that TFDS prepared.

    Raises UserError where it is damaged, or holds images of another size or labels out of range.
    """
    try:
        import tensorflow_datasets as tfds

        builder = cast(Any, tfds.builder_from_directory(str(prepared)))
        class_names = tuple(builder.info.features["label"].names)
        parts = {name: _read_split(builder.as_data_source(name), image_size) for name in ("train", "test")}
    except Exception as error:  # TFDS and array_record raise errors of many types on damaged files
        reason = str(error).strip().splitlines()
        raise UserError(
            f"{prepared} cannot be read with TFDS ({type(error).__name__}: {reason[0] if reason else ''}); prepare the "
            "data set again, or remove the directory to use the official archive."
        ) from error
    if len(class_names) != num_classes:
        raise UserError(
            f"{prepared} has {len(class_names)} class names, but has to have {num_classes}; prepare it again."
        )
    for name, split in parts.items():
        if split.labels.min() < 0 or split.labels.max() >= num_classes:
            raise UserError(
                f"{prepared} has labels from {split.labels.min()} to {split.labels.max()} in '{name}', but only 0 to "
                f"{num_classes - 1} are allowed; prepare it again."
            )
    return Decoded(parts["train"], parts["test"], class_names)


def _read_split(source: Any, image_size: int) -> Split:
    if not len(source):
        raise ValueError("a split is empty")
    images = np.empty((len(source), image_size, image_size, 3), np.uint8)
    labels = np.empty(len(source), np.int32)
    for start in range(0, len(source), _BLOCK):
        stop = min(start + _BLOCK, len(source))
        for index, example in enumerate(source.__getitems__(range(start, stop)), start):
            if example["image"].shape != images.shape[1:]:
                raise ValueError(f"image {index} is {example['image'].shape}, not {images.shape[1:]}")
            images[index] = example["image"]
            labels[index] = example["label"]
    return Split(labels, image_size, iter([images]))
