"""Parquet files of images and labels, as data sets on the Hugging Face Hub are stored. Needs pyarrow."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dctps_jax.data.dataset import Decoded, Options, check_numbering
from dctps_jax.data.encoded import Encoded, decode_in_order
from dctps_jax.data.images import DECODER
from dctps_jax.data.parquet_column import ParquetColumn
from dctps_jax.data.reading import parsing, stamp_of
from dctps_jax.data.shards import digest_of_files, shards_of
from dctps_jax.errors import UserError

_IMAGES, _LABELS = ("image", "img"), ("label", "labels", "fine_label")
_DOWNLOAD_AGAIN = "download it again"


def find_parquet_folder(options: Options) -> Encoded:
    """Find the images and labels of the parquet files below ``options.dir``, see ``dctps_jax.data.shards.shards_of``.

    A column ``image`` or ``img`` has image files, and a column ``label``, ``labels`` or ``fine_label`` has integer
    labels. The names of the classes come from the files' metadata; without it they are the labels.

    Raises UserError for missing or damaged files, and for columns or labels of another kind.
    """
    parts = [shards_of(options.dir, part, "parquet") for part in ("train", "test")]
    files = [path for paths in parts for path in paths]
    stamp = stamp_of(options.dir, files, extra=f"{options.decoding},{DECODER}")
    columns = {path: _columns(path) for path in files}
    train, test = (
        ParquetImages(paths, [columns[path][0] for path in paths], [columns[path][1] for path in paths])
        for paths in parts
    )
    names = _same_names({path: names for path, (_, _, names) in columns.items() if names})
    class_names = _check_labels(options.dir, train.labels, test.labels, names)
    for images in (train, test):
        images.labels = images.labels.astype(np.int32)
    digest = digest_of_files(options.dir, files)

    def decode() -> Decoded:
        return decode_in_order(train, test, class_names, options)

    return Encoded("parquet_folder", options.dir, train, test, class_names, digest, stamp, decode)


class ParquetImages:
    """The image files in a column of parquet files, and the labels in another one."""

    def __init__(self, paths: Sequence[Path], images: Sequence[str], labels: Sequence[str]):
        self.labels = np.concatenate([_labels(path, column) for path, column in zip(paths, labels, strict=True)])
        self._images = ParquetColumn(paths, images, _DOWNLOAD_AGAIN)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> tuple[str, bytes]:
        path, number, image = self._images[row]
        content: Any = image and image["bytes"]
        with parsing(path, _DOWNLOAD_AGAIN):
            if not content:
                raise ValueError(f"image {number} is missing")
        return f"image {number} in {path}", content


def _same_names(names: dict[Path, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the names of the classes, () if no file has any. All files with names must have the same names."""
    first = next(iter(names), None)
    for path, other in names.items():
        if first is not None and other != names[first]:
            raise UserError(
                f"{path} and {first} have other names of the classes, or in another order, so that their labels mean "
                f"different things; {_DOWNLOAD_AGAIN}"
            )
    return () if first is None else names[first]


def _check_labels(folder: Path, train: np.ndarray, test: np.ndarray, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the classes; without ``names`` they are the numbers."""
    for part, labels in (("train", train), ("test", test)):
        if not len(labels):
            raise UserError(f"{folder} has no image in its {part} files; {_DOWNLOAD_AGAIN}")
    lowest, highest = (int(getattr(np.concatenate([train, test]), bound)()) for bound in ("min", "max"))
    if highest > np.iinfo(np.int32).max:
        raise UserError(f"{folder} has the label {highest}, but labels must be numbers of classes; {_DOWNLOAD_AGAIN}")
    if lowest < 0 or (names and highest >= len(names)):
        raise UserError(
            f"{folder} has labels from {lowest} to {highest}, but they must be numbers of classes from 0"
            f"{f' to {len(names) - 1}' if names else ''}; {_DOWNLOAD_AGAIN}, or remove the images without a label"
        )
    if not names:
        check_numbering(f"{folder} (config.data.dir)", train, highest + 1)
    return names or tuple(map(str, range(highest + 1)))


def _columns(path: Path) -> tuple[str, str, tuple[str, ...]]:
    """Return the columns of images and labels of a file, and the names of the classes, if the file has them."""
    import pyarrow
    import pyarrow.parquet

    with parsing(path, _DOWNLOAD_AGAIN):
        schema = pyarrow.parquet.read_schema(path)
        image = next((name for name in _IMAGES if name in schema.names), "")
        label = next((name for name in _LABELS if name in schema.names), "")
        kind = schema.field(image).type if image else None
        holds_files = kind is not None and pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        if not holds_files or not label or not pyarrow.types.is_integer(schema.field(label).type):
            raise UserError(
                f"{path} has the columns {', '.join(f'{field.name} ({field.type})' for field in schema)}; a column "
                f"{' or '.join(_IMAGES)} must hold image files, and a column {' or '.join(_LABELS)} integers"
            )
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = features.get("info", {}).get("features", {}).get(label, {}).get("names") or ()
        return image, label, tuple(map(str, names))


def _labels(path: Path, column: str) -> np.ndarray:
    import pyarrow.parquet

    with parsing(path, _DOWNLOAD_AGAIN):
        values = pyarrow.parquet.read_table(path, columns=[column])[column]
    if values.null_count:
        row = values.is_null().index(True).as_py()
        raise UserError(
            f"{path} has {values.null_count} rows without a label in column {column!r}, the first is row {row}; label "
            "them, or leave them out"
        )
    with parsing(path, _DOWNLOAD_AGAIN):
        return values.to_numpy().astype(np.int64)
