"""CIFAR-10 and CIFAR-100 from a directory prepared by TFDS or from the official archives, binary or for Python.

In the binary format a record is one label byte (CIFAR-100: a coarse and a fine one) followed by 3,072 pixel bytes: the
red plane, then green, then blue, each row by row.
"""

import gzip
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from dctps_jax.data import tfds_source
from dctps_jax.data.cache import cached, cached_without_source
from dctps_jax.data.cifar_python import as_binary
from dctps_jax.data.dataset import Arrays, Channels, Dataset, Decoded, DecodedPart, Options
from dctps_jax.data.download import ARCHIVES, obtain
from dctps_jax.data.reading import parsing, read_file, stamp_of
from dctps_jax.errors import UserError

_SIZE = 32
_PIXELS = 3 * _SIZE * _SIZE
_MAX_TEXT_BYTES = 2**16
_MAX_OTHER_BYTES = 2**20  # of an archive: its headers, padding and a readme
_DOWNLOAD_AGAIN = "remove it and download it again"

# A function that turns the files of an archive, read from a place, into the files of the binary archive.
_Convert = Callable[[dict[str, bytes], Path], dict[str, bytes]]


@dataclass(frozen=True)
class _Layout:
    train_files: tuple[str, ...]
    test_file: str
    names_file: str
    num_classes: int
    label_bytes: int  # the label used is the last of them
    train_records: int  # in each file of the official archive
    test_records: int
    mean: Channels
    std: Channels
    python_archive: str
    python_folder: str
    python_names: str  # the file with the names of the classes
    label_keys: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train_files, self.test_file, self.names_file)

    @property
    def record_bytes(self) -> int:
        return self.label_bytes + _PIXELS

    @property
    def max_bytes(self) -> dict[str, int]:
        """Return how long each file may be: as long as in the official archive."""
        return {
            **dict.fromkeys(self.train_files, self.train_records * self.record_bytes),
            self.test_file: self.test_records * self.record_bytes,
            self.names_file: _MAX_TEXT_BYTES,
        }

    @property
    def python_files(self) -> dict[str, str]:
        """Return the names of the binary files by their names in the python archive."""
        return {**{Path(file).stem: file for file in self.files[:-1]}, self.python_names: self.names_file}

    @property
    def max_python_bytes(self) -> dict[str, int]:
        """Return how long each file of the python archive may be. It also has a name for each image."""
        limits = self.max_bytes
        return {name: limits[file] // 8 * 9 + _MAX_TEXT_BYTES for name, file in self.python_files.items()}


_LAYOUTS = {
    "cifar10": _Layout(
        tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        "test_batch.bin",
        "batches.meta.txt",
        num_classes=10,
        label_bytes=1,
        train_records=10_000,
        test_records=10_000,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        python_archive="cifar-10-python.tar.gz",
        python_folder="cifar-10-batches-py",
        python_names="batches.meta",
        label_keys=("labels",),
    ),
    "cifar100": _Layout(
        ("train.bin",),
        "test.bin",
        "fine_label_names.txt",
        num_classes=100,
        label_bytes=2,
        train_records=50_000,
        test_records=10_000,
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
        python_archive="cifar-100-python.tar.gz",
        python_folder="cifar-100-python",
        python_names="meta",
        label_keys=("coarse_labels", "fine_labels"),
    ),
}


def load_cifar(name: str, options: Options) -> Dataset:
    """Read CIFAR: 32 × 32 RGB images. ``name`` is "cifar10", or "cifar100", which is read with its fine labels.

    The function reads the first of these that ``options.dir`` holds: a TFDS directory in array_record format, the
    official binary archive, its extracted folder, the same for Python, a decoded copy of an earlier run. If there is
    none, it downloads the binary archive. An archive may hold fewer records than the official one. ``mean`` and ``std``
    are the values in common use for the training images.

    Raises UserError if nothing is found and nothing can be downloaded, and for a damaged file.
    """
    layout = _LAYOUTS[name]
    arrays = _from_tfds(name, layout, options) or _from_binary(name, layout, options)
    return Dataset(name, *arrays, mean=layout.mean, std=layout.std)


def _from_tfds(name: str, layout: _Layout, options: Options) -> Arrays | None:
    prepared = tfds_source.find_prepared(name, options.dir)
    if prepared is None:
        return None
    files = [path for path in prepared.iterdir() if path.is_file() and not path.name.startswith(".")]
    stamp = stamp_of(prepared, files)
    as_stored = replace(options, image_size=0, channels=3)
    return cached(
        name,
        prepared,
        stamp,
        options,
        lambda: tfds_source.decode(prepared, as_stored, _SIZE, layout.num_classes),
    )


def _from_binary(name: str, layout: _Layout, options: Options) -> Arrays:
    archive = ARCHIVES[name]

    def from_python(contents: dict[str, bytes], source: Path) -> dict[str, bytes]:
        binary = as_binary(contents, source, layout.label_keys, _DOWNLOAD_AGAIN)
        return {layout.python_files[file]: content for file, content in binary.items()}

    def of_archive(path: Path, folder: str, limits: dict[str, int], convert: _Convert) -> Arrays:
        def decode() -> Decoded:
            return _decode(convert(_read_archive(path, folder, limits), path), path, layout)

        return cached(name, path, stamp_of(path.parent, [path]), options, decode)

    def of_folder(folder: Path, limits: dict[str, int], convert: _Convert) -> Arrays:
        def decode() -> Decoded:
            return _decode(convert(_read_folder(folder, limits), folder), folder, layout)

        stamp = stamp_of(folder, [folder / file for file in limits if (folder / file).is_file()])
        return cached(name, folder, stamp, options, decode)

    kinds: tuple[tuple[str, str, dict[str, int], _Convert], ...] = (
        (archive.file, archive.folder, layout.max_bytes, lambda contents, source: contents),
        (layout.python_archive, layout.python_folder, layout.max_python_bytes, from_python),
    )
    for file, folder_name, limits, convert in kinds:
        if (options.dir / file).is_file():
            return of_archive(options.dir / file, folder_name, limits, convert)
        if folder := _find_extracted(options.dir, folder_name, limits):
            return of_folder(folder, limits, convert)
    if arrays := cached_without_source(name, options):
        return arrays
    return of_archive(obtain(archive, options), *kinds[0][1:])


def _find_extracted(parent: Path, name: str, files: Iterable[str]) -> Path | None:
    """Return the folder extracted from the archive: ``parent``/``name``, or ``parent``. Files may be missing in it."""
    for folder in (parent / name, parent):
        if any((folder / file).is_file() for file in files):
            return folder
    return None


def _read_folder(folder: Path, limits: dict[str, int]) -> dict[str, bytes]:
    present = {file: limit for file, limit in limits.items() if (folder / file).is_file()}
    return {file: read_file(folder / file, limit, _DOWNLOAD_AGAIN) for file, limit in present.items()}


def _read_archive(path: Path, folder: str, limits: dict[str, int]) -> dict[str, bytes]:
    contents = {}
    with parsing(path, _DOWNLOAD_AGAIN), _LimitedGzip(path, sum(limits.values()) + _MAX_OTHER_BYTES) as stream:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                *parents, file = ("", *PurePosixPath(member.name).parts)[-2:]
                if parents != [folder] or file not in limits or not member.isreg():
                    continue
                if member.size > limits[file]:
                    raise UserError(
                        f"{file} in {path} has {member.size:,} bytes, but at most {limits[file]:,} are allowed; "
                        f"{_DOWNLOAD_AGAIN}"
                    )
                opened = archive.extractfile(member)
                assert opened is not None
                contents[file] = opened.read()
        # tarfile stops at its end stamp. The checksum of gzip comes after it, and only reading to the end checks it.
        while stream.read(1 << 20):
            pass
    return contents


class _LimitedGzip(gzip.GzipFile):
    """A file that may unpack to at most ``limit`` bytes: tarfile keeps all metadata in memory, e.g. long names."""

    def __init__(self, path: Path, limit: int):
        super().__init__(path)
        self._path, self._limit = path, limit

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if self.tell() > self._limit:
            raise UserError(
                f"{self._path} unpacks to more than the {self._limit:,} bytes that are allowed; {_DOWNLOAD_AGAIN}"
            )
        return data


def _decode(contents: dict[str, bytes], source: Path, layout: _Layout) -> Decoded:
    for file in layout.files:
        if file not in contents:
            raise UserError(f"{source} holds no {file}, which is part of the official layout; download it again")
    try:
        class_names = tuple(contents[layout.names_file].decode("utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise UserError(f"{layout.names_file} in {source} is not text ({error}); download it again") from error
    if len(class_names) != layout.num_classes:
        raise UserError(
            f"{layout.names_file} in {source} holds {len(class_names)} class names, but must hold "
            f"{layout.num_classes}; download it again"
        )

    def split(files: tuple[str, ...]) -> DecodedPart:
        parts = [_parse_records(contents[file], f"{file} in {source}", layout) for file in files]
        blocks = (images for images, _ in parts)
        return DecodedPart(np.concatenate([labels for _, labels in parts]), _SIZE, blocks)

    return Decoded(split(layout.train_files), split((layout.test_file,)), class_names)


def _parse_records(data: bytes, where: str, layout: _Layout) -> tuple[np.ndarray, np.ndarray]:
    """Return images [n, size, size, 3] and labels [n]."""
    record_bytes = layout.record_bytes
    if not data or len(data) % record_bytes:
        raise UserError(
            f"{where} has {len(data)} bytes, but must have a positive multiple of {record_bytes}; it is cut short or "
            "no CIFAR batch: download it again"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, record_bytes)
    labels = records[:, layout.label_bytes - 1].astype(np.int32)
    if labels.max() >= layout.num_classes:
        raise UserError(
            f"{where} has the label {labels.max()}, but only 0 to {layout.num_classes - 1} are allowed; it is damaged: "
            "download it again"
        )
    planes = records[:, layout.label_bytes :].reshape(-1, 3, _SIZE, _SIZE)
    return planes.transpose(0, 2, 3, 1), labels
