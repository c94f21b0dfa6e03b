"""Data sets that TFDS has prepared in array_record or parquet format, read without TensorFlow.

This module reads the records and three small files only. TFDS's own reader of such directories is not used: it imports
the modules that features.json and dataset_info.json name, and decodes any features and image formats that they give.
"""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from dctps_jax.data.array_records import ArrayRecords
from dctps_jax.data.dataset import Decoded, DecodedPart, Options
from dctps_jax.data.decoding import decode_part
from dctps_jax.data.encoded import Encoded, ImageFiles
from dctps_jax.data.images import DECODER
from dctps_jax.data.parquet_column import ParquetColumn
from dctps_jax.data.reading import parsing, read_file, stamp_of
from dctps_jax.data.shards import digest_of_files
from dctps_jax.errors import UserError

logger = logging.getLogger("dctps_jax")

_INFO = "dataset_info.json"
_FEATURES = "features.json"
_CLASS_NAMES = "label.labels.txt"
_MAX_BYTES = 2**22
_PREPARE_AGAIN = "prepare the data set again, or remove the directory to use the official archive"
_OWN_MODULES = "tensorflow_datasets.core.features."
_FORMATS = ("array_record", "parquet")


def find_tfds_folder(options: Options) -> Encoded:
    """Find a directory that TFDS prepared: the one with dataset_info.json, or else the newest version below it.

    The test part is the split "test", or else "validation".
    """
    prepared = _find_version(options.dir)
    if prepared is None:
        raise UserError(
            f"{options.dir} (config.data.dir) has no {_INFO} in {' or '.join(_FORMATS)} format; set config.data.dir to "
            "a directory that TFDS prepared with file_format='array_record'"
        )
    files = [path for path in prepared.iterdir() if path.is_file() and not path.name.startswith(".")]
    stamp = stamp_of(prepared, files, extra=f"{options.decoding},{DECODER}")
    kept_as, digest = stamp_of(prepared, files), digest_of_files(prepared, files)
    _check_features(prepared / _FEATURES)
    shards = _list_shards(prepared)
    train, test = (_images_in(shards[part], f"{kept_as}-{part}") for part in ("train", "test"))
    class_names = _read_class_names(prepared / _CLASS_NAMES, 0)

    def decode_all() -> Decoded:
        return decode(prepared, options)

    return Encoded("tfds_folder", prepared, train, test, class_names, digest, stamp, decode_all)


def _find_version(folder: Path) -> Path | None:
    return next((path for path in _versions_in(folder) if _read_json(path / _INFO).get("fileFormat") in _FORMATS), None)


def _versions_in(folder: Path) -> list[Path]:
    """Return the folders with a dataset_info.json: ``folder`` itself, or the versions below it, the newest first."""
    if (folder / _INFO).exists():
        return [folder]
    return _newest_first(folder.glob(f"**/{_INFO}"))


def _newest_first(files: Iterable[Path]) -> list[Path]:
    """Return the folders of some files, as far as their names are versions."""
    versions = [file.parent for file in files if re.fullmatch(r"[\d.]+", file.parent.name)]
    return sorted(versions, key=lambda path: [int(number) for number in path.name.split(".") if number], reverse=True)


def find_prepared(name: str, folder: Path) -> Path | None:
    """Return the directory with the newest version of the data set ``name`` that TFDS prepared in one of ``_FORMATS``.

    The function looks at ``<folder>/<name>/<version>`` and at ``folder`` itself, and returns None if neither is there.
    A version in another format is passed over with a warning, since only TensorFlow could read it. Raises UserError if
    a dataset_info.json is damaged or, in ``folder`` itself, belongs to another data set.
    """
    candidates = _newest_first((folder / name).glob(f"*/{_INFO}"))
    candidates += [folder] if (folder / _INFO).exists() else []
    for candidate in candidates:
        path = candidate / _INFO
        info = _read_json(path)
        found, file_format = info.get("name"), info.get("fileFormat", "tfrecord")
        if not isinstance(found, str):
            raise UserError(f"{path} gives no name of a data set; {_PREPARE_AGAIN}")
        if found != name:
            raise UserError(
                f"{path} belongs to the data set '{found}', but config.data.name is '{name}'; set config.data.dir to "
                "another folder"
            )
        if file_format in _FORMATS:
            return candidate
        logger.warning(
            "%s is in %s format, which only TensorFlow can read, and is passed over; prepare it with "
            "file_format='array_record' to use it",
            candidate,
            file_format,
        )
    return None


def decode(prepared: Path, options: Options, size: int = 0, num_classes: int = 0) -> Decoded:
    """Read the features "image" and "label" of the splits "train" and "test" in a directory that TFDS prepared.

    ``size`` and ``num_classes`` are what the images and labels must have (0: any).

    Raises UserError if it is damaged, has features of other packages than TFDS, or holds images of another size or
    labels out of range.
    """
    _check_features(prepared / _FEATURES)
    shards = _list_shards(prepared)
    class_names = _read_class_names(prepared / _CLASS_NAMES, num_classes)
    num_classes = len(class_names)
    try:
        parts = {name: _decode_split(shards[name], options, size) for name in ("train", "test")}
    except ImportError as error:
        raise UserError(
            f"{prepared} cannot be read without the Python package {error.name}; install it, or remove the directory "
            "to use the official archive"
        ) from error
    for name, split in parts.items():
        if split.labels.min() < 0 or split.labels.max() >= num_classes:
            raise UserError(
                f"{prepared} has labels from {split.labels.min()} to {split.labels.max()} in '{name}', but only 0 to "
                f"{num_classes - 1} are allowed; {_PREPARE_AGAIN}"
            )
    return Decoded(parts["train"], parts["test"], class_names)


def _read_json(path: Path) -> dict[str, Any]:
    content = read_file(path, _MAX_BYTES, _PREPARE_AGAIN)
    with parsing(path, _PREPARE_AGAIN):
        values = json.loads(content)
        if not isinstance(values, dict):
            raise ValueError("it is no JSON object")
        return values


def _check_features(path: Path) -> None:
    """Raise UserError unless the features are TFDS's own, "image" an image and "label" a class."""
    features = _read_json(path)
    with parsing(path, _PREPARE_AGAIN):
        for name in _class_names_in(features):
            if not name.startswith(_OWN_MODULES):
                raise UserError(
                    f"{path} asks for the Python class '{name}', but only classes of TFDS ({_OWN_MODULES}*) are "
                    f"allowed; {_PREPARE_AGAIN}"
                )
        for name, kind in (("image", "image_feature.Image"), ("label", "class_label_feature.ClassLabel")):
            found = features["featuresDict"]["features"][name]["pythonClassName"]
            if found != _OWN_MODULES + kind:
                raise ValueError(f"'{name}' is {found}, not {_OWN_MODULES}{kind}")


def _class_names_in(value: Any) -> Iterator[str]:
    """Yield the Python classes that a features.json names, at any depth."""
    if isinstance(value, list):
        for item in value:
            yield from _class_names_in(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in ("pythonClassName", "python_class_name", "type") and isinstance(item, str):
                yield item
            yield from _class_names_in(item)


def _list_shards(prepared: Path) -> dict[str, list[tuple[Path, int]]]:
    """Return the files of each split, with the number of records in each file."""
    path = prepared / _INFO
    info = _read_json(path)
    with parsing(path, _PREPARE_AGAIN):
        all_lengths = {split["name"]: [int(length) for length in split["shardLengths"]] for split in info["splits"]}
        shards = {}
        for part, names in (("train", ("train",)), ("test", ("test", "validation"))):
            name = next((name for name in names if sum(all_lengths.get(name, []))), None)
            if name is None:
                raise ValueError(f"it gives the split '{part}' no records")
            lengths = all_lengths[name]
            stem = f"{info['name']}-{name}.{info['fileFormat']}"
            shards[part] = [
                (prepared / f"{stem}-{number:05}-of-{len(lengths):05}", length) for number, length in enumerate(lengths)
            ]
        return shards


def _read_class_names(path: Path, num_classes: int) -> tuple[str, ...]:
    content = read_file(path, _MAX_BYTES, _PREPARE_AGAIN)
    with parsing(path, _PREPARE_AGAIN):
        names = tuple(line.strip() for line in content.decode("utf-8-sig").split("\n") if line.strip())
    num_classes = num_classes or len(names)
    if not names or len(set(names)) != num_classes or len(names) != num_classes:
        raise UserError(
            f"{path} has {len(names)} class names ({len(set(names))} different ones), but must have {num_classes}; "
            f"{_PREPARE_AGAIN}"
        )
    return names


def _decode_split(shards: Sequence[tuple[Path, int]], options: Options, size: int) -> DecodedPart:
    files = _images_in(shards, kept_as="decoded")
    images = (files[row] for row in range(len(files)))
    return decode_part(images, files.labels, options, f"{_PREPARE_AGAIN}.", size)


def _images_in(shards: Sequence[tuple[Path, int]], kept_as: str) -> ImageFiles:
    """Return the image files and labels of a split. The labels of many records are kept in the cache as ``kept_as``."""
    paths = [path for path, _ in shards]
    is_parquet = ".parquet" in paths[0].name
    files = ExamplesInParquet(paths) if is_parquet else ArrayRecords(paths, parse_example, kept_as, _PREPARE_AGAIN)
    for (path, length), found in zip(shards, files.lengths, strict=True):
        with parsing(path, _PREPARE_AGAIN):
            if found != length:
                raise ValueError(f"it has {found} records, but {_INFO} says {length}")
    return files


def parse_example(record: bytes) -> tuple[bytes, int]:
    """Return the image file and the label of a record of TFDS."""
    from tensorflow_datasets.proto import tf_example_pb2

    features = cast(Any, tf_example_pb2).Example.FromString(record).features.feature
    return features["image"].bytes_list.value[0], features["label"].int64_list.value[0]


class ExamplesInParquet:
    """The image files and labels in the records that TFDS writes to parquet files."""

    def __init__(self, paths: Sequence[Path]):
        self._records = ParquetColumn(paths, ["data"] * len(paths), _PREPARE_AGAIN)
        self.lengths = self._records.lengths
        self._labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, row: int) -> tuple[str, bytes]:
        path, number, record = self._records[row]
        with parsing(path, _PREPARE_AGAIN):
            image, _ = parse_example(record)
        return f"image {number} in {path}", image

    @property
    def labels(self) -> np.ndarray:
        if self._labels is None:
            self._labels = self._read_labels()
        return self._labels

    def _read_labels(self) -> np.ndarray:
        labels = np.empty(len(self), np.int32)
        for row in range(len(self)):
            path, _, record = self._records[row]
            with parsing(path, _PREPARE_AGAIN):
                labels[row] = parse_example(record)[1]
        return labels
