"""Images and labels in array_record files, by row: TFDS's records, and plain records, which this module defines.

A plain record is the label, four bytes, little-endian, followed by the image file:

    writer = array_record.python.array_record_module.ArrayRecordWriter("train.array_record", "group_size:1")
    writer.write(label.to_bytes(4, "little") + Path("image.jpg").read_bytes())
    writer.close()
"""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dctps_jax.data.dataset import Decoded, Options
from dctps_jax.data.encoded import Encoded, decode_in_order
from dctps_jax.data.images import DECODER
from dctps_jax.data.reading import cache_folder, open_regular, parsing, stamp_of, unreadable
from dctps_jax.data.shards import RowsInShards, class_names_in, digest_of_files, shards_of
from dctps_jax.errors import UserError
from dctps_jax.npz import read_npz, write_npz

_LABEL_BYTES = 4
_MANY = 100_000
_ADVICE = "write it again"


def find_array_record_folder(options: Options) -> Encoded:
    """Find the plain array_record files below ``options.dir``, see ``dctps_jax.data.shards.shards_of``.

    The lines of ``classes.txt`` name the classes; without that file they are called by their numbers. The labels of all
    records are read once and kept in the user's cache. Raises UserError for missing or damaged files, and for labels
    out of range.
    """
    parts = {part: shards_of(options.dir, part, "array_record") for part in ("train", "test")}
    files = [path for paths in parts.values() for path in paths]
    stamp = stamp_of(options.dir, files, extra=f"{options.decoding},{DECODER}")
    kept_as = stamp_of(options.dir, files)
    train, test = (ArrayRecords(paths, _parse, f"{kept_as}-{part}", _ADVICE) for part, paths in parts.items())
    class_names = class_names_in(options.dir, [train.labels, test.labels])
    digest = digest_of_files(options.dir, files)

    def decode() -> Decoded:
        return decode_in_order(train, test, class_names, options)

    return Encoded("array_record_folder", options.dir, train, test, class_names, digest, stamp, decode)


def _parse(record: bytes) -> tuple[bytes, int]:
    if len(record) <= _LABEL_BYTES:
        raise ValueError(f"a record has {len(record)} bytes; it must be a label of {_LABEL_BYTES} and an image file")
    return record[_LABEL_BYTES:], int.from_bytes(record[:_LABEL_BYTES], "little")


class ArrayRecords:
    """The image files and labels in array_record files; ``parse`` takes them out of a record.

    The labels lie in the records. The first use reads all of them. If there are many, they are kept in the user's cache
    as ``kept_as``. ``lengths`` are the numbers of records in each file.
    """

    def __init__(self, paths: Sequence[Path], parse: Callable[[bytes], tuple[bytes, int]], kept_as: str, advice: str):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.paths, self._parse, self._kept_as, self._advice = list(paths), parse, kept_as, advice
        self._records = []
        for path in self.paths:
            try:
                open_regular(path).close()
            except OSError as error:
                raise unreadable(path, error, advice) from error
            with parsing(path, advice):
                self._records.append(ArrayRecordDataSource([str(path)]))
        self._labels: np.ndarray | None = None
        self.lengths = [*map(len, self._records)]
        self._rows = RowsInShards(self.lengths)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> tuple[str, bytes]:
        shard, number = self._rows.find(row)
        with parsing(self.paths[shard], self._advice):
            image, _ = self._parse(self._records[shard][number])
        return f"image {number} in {self.paths[shard]}", image

    @property
    def labels(self) -> np.ndarray:
        if self._labels is None:
            self._labels = self._read_labels() if len(self) < _MANY else self._kept_labels()
        return self._labels

    def _kept_labels(self) -> np.ndarray:
        path = cache_folder("labels") / f"{self._kept_as}.npz"
        if path.exists():
            with contextlib.suppress(UserError, KeyError):  # a damaged file is made again
                labels = read_npz(path, "labels")["labels"]
                if labels.shape == (len(self),) and labels.dtype == np.int32:
                    return labels
        print(f"reading the labels of {self.paths[0].parent} once; they are kept in {path}")
        labels = self._read_labels()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_npz(path, {"labels": labels})
        return labels

    def _read_labels(self) -> np.ndarray:
        labels = np.empty(len(self), np.int32)
        for row in range(len(self)):
            shard, number = self._rows.find(row)
            with parsing(self.paths[shard], self._advice):
                labels[row] = self._parse(self._records[shard][number])[1]
        return labels
