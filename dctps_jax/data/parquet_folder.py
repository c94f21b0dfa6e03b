"""Parquet files of images and labels, as data sets on the Hugging Face Hub are stored: needs pyarrow."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dctps_jax.data.cache import cached
from dctps_jax.data.dataset import Dataset, Decoded, Options, check_numbering
from dctps_jax.data.decoding import decode_part
from dctps_jax.data.images import DECODER
from dctps_jax.data.reading import parsing, stamp_of
from dctps_jax.errors import UserError

_IMAGES, _LABELS = ("image", "img"), ("label", "labels", "fine_label")
# A split goes by the first of these names that has files.
_SPLITS = {"train": ("train",), "test": ("test", "validation", "valid", "val")}
_DOWNLOAD_AGAIN = "download it again"
_BLOCK = 64


def load_parquet_folder(options: Options) -> Dataset:
    """Reads the images and labels of the parquet files below `options.dir`.

    A file belongs to the split that its name or its folder begins with: `train-00000-of-00001.parquet`,
    `train/0000.parquet`. The test part is the split test, or else the validation. An image is a column `image` or `img`
    of image files, a label a column `label`, `labels` or `fine_label` of integers; the names of the classes are those
    of the files' metadata, or else the labels.

    Raises UserError for missing or damaged files, and for columns or labels of another kind.
    """
    files = sorted(path for path in options.dir.rglob("*.parquet") if path.is_file())
    parts = {part: _files_of(files, names, options.dir) for part, names in _SPLITS.items()}
    stamp = stamp_of(options.dir, [*parts["train"], *parts["test"]], extra=f"{options.decoding},{DECODER}")
    arrays = cached("parquet_folder", options.dir, stamp, options, lambda: _decode(parts, options))
    return Dataset("parquet_folder", *arrays)


def _files_of(files: Sequence[Path], splits: Sequence[str], folder: Path) -> list[Path]:
    for split in splits:
        pattern = re.compile(rf"(?:.*/)?{split}(?:[-._/][^/]*)?\.parquet")
        if found := [path for path in files if pattern.fullmatch(path.relative_to(folder).as_posix())]:
            return found
    raise UserError(
        f"{folder} (data.dir) has no file {splits[0]}-*.parquet among its {len(files)} parquet files; set data.dir to "
        f"a folder that has them, for train and for {' or '.join(_SPLITS['test'])}."
    )


def _decode(parts: dict[str, list[Path]], options: Options) -> Decoded:
    columns = {path: _columns(path) for paths in parts.values() for path in paths}
    labels = {
        part: np.concatenate([_labels(path, columns[path][1]) for path in paths]) for part, paths in parts.items()
    }
    names = next((names for _, _, names in columns.values() if names), ())
    highest, lowest = (int(getattr(np.concatenate([*labels.values()]), bound)()) for bound in ("max", "min"))
    if lowest < 0 or (names and highest >= len(names)):
        raise UserError(
            f"{options.dir} has labels from {lowest} to {highest}, but they have to be numbers of classes from 0"
            f"{f' to {len(names) - 1}' if names else ''}; {_DOWNLOAD_AGAIN}, or remove the images without a label."
        )
    if not names:
        check_numbering(f"{options.dir} (data.dir)", labels["train"], highest + 1)

    def contents(paths: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
        for path in paths:
            yield from _images(path, columns[path][0])

    decoded = {
        part: decode_part(contents(paths), labels[part], options, "set data.image_size to bring them to one size.")
        for part, paths in parts.items()
    }
    return Decoded(decoded["train"], decoded["test"], names or tuple(map(str, range(highest + 1))))


def _columns(path: Path) -> tuple[str, str, tuple[str, ...]]:
    """Return the columns of images and labels of a file, and the names of the classes, if it has them."""
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
                f"{' or '.join(_IMAGES)} has to hold image files, and a column {' or '.join(_LABELS)} integers."
            )
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = features.get("info", {}).get("features", {}).get(label, {}).get("names") or ()
        return image, label, tuple(map(str, names))


def _labels(path: Path, column: str) -> np.ndarray:
    import pyarrow.parquet

    with parsing(path, _DOWNLOAD_AGAIN):
        values = pyarrow.parquet.read_table(path, columns=[column])[column]
        if values.null_count:
            raise ValueError(f"{values.null_count} labels are missing")
        return values.to_numpy().astype(np.int32)


def _images(path: Path, column: str) -> Iterator[tuple[str, bytes]]:
    """Yield the content of each image file, and where it is."""
    import pyarrow.parquet

    number = 0
    with parsing(path, _DOWNLOAD_AGAIN), pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(_BLOCK, columns=[column]):
            for image in batch.column(0).to_pylist():
                content: Any = image and image["bytes"]
                if not content:
                    raise ValueError(f"image {number} is missing")
                yield f"image {number} in {path}", content
                number += 1
