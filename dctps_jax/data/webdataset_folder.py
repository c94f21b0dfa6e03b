"""WebDataset: tar files in which ``KEY.jpg`` is an image and ``KEY.cls`` its label, indexed and then read by row."""

import os
import tarfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dctps_jax.data.dataset import Decoded, Options
from dctps_jax.data.encoded import Encoded, decode_in_order
from dctps_jax.data.images import DECODER, SUFFIXES, max_file_bytes
from dctps_jax.data.reading import open_regular, parsing, stamp_of, unreadable
from dctps_jax.data.shards import RowsInShards, class_names_in, digest_of_files, shards_of
from dctps_jax.errors import UserError

_LABEL = ".cls"
_MAX_LABEL_BYTES = 20
_ADVICE = "get it again"
# How files compressed by gzip, bzip2, xz and zstd begin.
_COMPRESSIONS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
# At most this much is read after the last member. Programs fill a tar file up to a multiple of some kilobytes.
_END_BYTES = 2**20


def find_webdataset_folder(options: Options) -> Encoded:
    """Find the images and labels in the tar files below ``options.dir``, see ``dctps_jax.data.shards.shards_of``.

    Members with the same name up to the first dot of their last part belong together: an image file, and a label,
    ``.cls``, a number in text. Other members are passed over. The lines of ``classes.txt`` name the classes; without
    that file they are called by their numbers. Raises UserError for missing, compressed or damaged files, for an image
    without a label, and for labels out of range.
    """
    parts = [shards_of(options.dir, part, "tar") for part in ("train", "test")]
    files = [path for paths in parts for path in paths]
    stamp = stamp_of(options.dir, files, extra=f"{options.decoding},{DECODER}")
    train, test = (TarImages(paths, max_file_bytes(options.max_pixels)) for paths in parts)
    class_names = class_names_in(options.dir, [train.labels, test.labels])
    digest = digest_of_files(options.dir, files)

    def decode() -> Decoded:
        return decode_in_order(train, test, class_names, options)

    return Encoded("webdataset_folder", options.dir, train, test, class_names, digest, stamp, decode)


class TarImages:
    """The images in tar files, with their places and labels. A file stays open once something was read from it."""

    def __init__(self, paths: Sequence[Path], max_bytes: int):
        self._open: dict[int, int] = {}
        self._lock = threading.Lock()
        self.paths = list(paths)
        indexed = [_index(path, max_bytes) for path in self.paths]
        self.labels = np.concatenate([labels for _, labels, _ in indexed])
        self._places = np.concatenate([places for places, _, _ in indexed])
        self._names = [names for _, _, names in indexed]
        self._rows = RowsInShards([len(labels) for _, labels, _ in indexed])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def __del__(self) -> None:
        for handle in self._open.values():
            os.close(handle)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> tuple[str, bytes]:
        shard, number = self._rows.find(row)
        path, (offset, size) = self.paths[shard], map(int, self._places[row])
        try:
            content = os.pread(self._handle(shard), size, offset)
        except OSError as error:
            raise unreadable(path, error, _ADVICE) from error
        if len(content) != size:
            raise UserError(f"{path} became shorter after it was indexed; start the run again with the whole file")
        return f"{self._names[shard][number]} in {path}", content

    def _handle(self, shard: int) -> int:
        with self._lock:
            if shard not in self._open:
                self._open[shard] = os.open(self.paths[shard], os.O_RDONLY)
            return self._open[shard]


def _index(path: Path, max_bytes: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return offset and size of each image in a tar file, int64 [n, 2], the labels, and the names."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    try:
        file = open_regular(path)
    except OSError as error:
        raise unreadable(path, error, _ADVICE) from error
    if file.read(8).startswith(_COMPRESSIONS):
        file.close()
        raise UserError(f"{path} is compressed; uncompress it, so that each of its images can be read by itself")
    file.seek(0)
    with file, parsing(path, _ADVICE), tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if not member.isreg():
                continue
            folder, _, name = member.name.rpartition("/")
            stem, _, rest = name.partition(".")
            key, suffix = f"{folder}/{stem}", f".{rest}".lower()
            if suffix in SUFFIXES:
                if key in images:
                    raise UserError(
                        f"{path} has two images {images[key][0]} and {member.name}; give each a name of its own up to "
                        "the first dot"
                    )
                if member.size > max_bytes:
                    raise UserError(
                        f"{member.name} in {path} has {member.size:,} bytes, at most {max_bytes:,} are allowed; make "
                        "it smaller, or raise config.data.max_pixels"
                    )
                images[key] = member.name, member.offset_data, member.size
            elif suffix == _LABEL:
                content = tar.extractfile(member)
                assert content is not None
                labels[key] = _label(f"{member.name} in {path}", content.read(_MAX_LABEL_BYTES))
        _check_end(file, tar.offset)
    if missing := next((name for key, (name, _, _) in images.items() if key not in labels), None):
        raise UserError(
            f"{missing} in {path} has no label; add a file of the same name that ends with {_LABEL} and holds the "
            "number of its class, or leave the image out"
        )
    if not images:
        raise UserError(f"{path} has no image; the name of one must end with {', '.join(SUFFIXES)}")
    places = np.array([(offset, size) for _, offset, size in images.values()], np.int64)
    numbers = np.array([labels[key] for key in images], np.int32)
    return places, numbers, [name for name, _, _ in images.values()]


def _check_end(file: BinaryIO, offset: int) -> None:
    """Raise ValueError unless a tar file ends at ``offset``, where tarfile has found no further member.

    A tar file ends with blocks of zeros. Without them it was cut off, or a block is damaged, which tarfile does not
    report.
    """
    file.seek(offset)
    rest = file.read(_END_BYTES)
    if len(rest) < tarfile.BLOCKSIZE or any(rest[: tarfile.BLOCKSIZE]):
        raise ValueError("it has no end, a block of zeros")
    if any(rest):
        raise ValueError("something follows its end, as in tar files that were joined")


def _label(name: str, content: bytes) -> int:
    advice = "it must hold the number of a class, from 0 on"
    try:
        label = int(content)
    except ValueError as error:
        raise UserError(f"{name} holds {content!r}; {advice}") from error
    if not 0 <= label < 2**31:
        raise UserError(f"{name} holds {label}; {advice}")
    return label
