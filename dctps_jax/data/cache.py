"""Decoded copies of image sets on disk, so that only the first run has to decode.

A copy is the folder `<name>-<fingerprint of the source>` with four .npy files and meta.json. It is written under a
temporary name next to its final one and renamed when it is whole, so that a killed run leaves no half copy, and of two
runs that decode at once the second takes the first one's. Every load checks the CRC-32 of each file: enough against
disks that fail and copies that were cut short, and the fastest digest at hand (about 2 GB/s). The images are
memory-mapped, read-only.
"""

import hashlib
import io
import json
import logging
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dctps_jax.data.dataset import Options
from dctps_jax.errors import UserError

logger = logging.getLogger("dctps_jax")

FALLBACK_ROOT = "~/.cache/dctps_jax/decoded"
_FOLDER_IN_SOURCE = ".dctps_cache"
_FORMAT = 1
_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_STALE_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Split:
    """One part of a data set while it is decoded: int32 `labels` [n] and its images as uint8 blocks [*, size, size, 3].

    The blocks come in the order of the labels, so that a part never has to fit into memory as a whole.
    """

    labels: np.ndarray
    image_size: int
    blocks: Iterator[np.ndarray]


@dataclass(frozen=True)
class Decoded:
    """What the decoder of a source gives: both parts and the names of the classes."""

    train: Split
    test: Split
    class_names: tuple[str, ...]


Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]


class _DamagedError(Exception):
    """A decoded copy that is not what was written; the message names the file."""


def cached(name: str, source: Path, fingerprint: str, options: Options, decode: Callable[[], Decoded]) -> Arrays:
    """Returns train images, train labels, test images, test labels and class names, decoding only where it has to.

    `fingerprint` stands for the content of `source`. The copy goes below `options.cache_dir`, or else below
    `.dctps_cache` in `options.dir`, or, where that must not be written to, below ~/.cache/dctps_jax/decoded. A damaged
    copy is reported in a warning, removed and made again.

    Raises UserError where the copy cannot be written, and whatever `decode` raises.
    """
    folders = [root / f"{name}-{fingerprint[:12]}" for root in _roots(options)]
    # More than one round only where another process removes or damages the copy under our hands.
    for _ in range(3):
        for folder in folders:
            if folder.is_dir():
                try:
                    return _read(folder)
                except _DamagedError as damage:
                    logger.warning("%s; the decoded copy is made again from %s", damage, source)
                    shutil.rmtree(folder, ignore_errors=True)
        logger.info("decoding %s once into %s", source, folders[0])
        try:
            _write(folders[0], name, source, decode(), options.dir)
        except OSError as error:
            raise UserError(
                f"the decoded copy of {source} cannot be written to {folders[0]}: {error}; make room there, or set "
                "data.cache_dir to a folder that can be written to."
            ) from error
    raise UserError(f"{folders[0]} is damaged after it was written; set data.cache_dir to a folder on another disk.")


def cached_without_source(name: str, options: Options) -> Arrays | None:
    """Returns the decoded copy of a source `name` that once lay in `options.dir`; None where there is not just one.

    Raises UserError where the copy is damaged.
    """
    # A root may serve several folders: the copy of another one, perhaps a subset, must not be taken for this one's.
    copies = [
        meta.parent
        for root in _roots(options)
        for meta in sorted(root.glob(f"{name}-*/meta.json"))
        if _source_dir(meta.parent) == str(options.dir.resolve())
    ]
    if len(copies) != 1:
        return None
    logger.info("%s holds no source of '%s'; its decoded copy %s is used", options.dir, name, copies[0])
    try:
        return _read(copies[0])
    except _DamagedError as damage:
        raise UserError(
            f"{damage}, and there is nothing in {options.dir} (data.dir) to make it again from; put the source of "
            f"'{name}' there, or remove {copies[0]}."
        ) from damage


def fingerprint(folder: Path, files: Iterable[Path], extra: str = "") -> str:
    """Returns a hex digest over the names (relative to `folder`), sizes and times of change of `files`.

    It reads no content: that would take longer than the decoded copy saves. The place of `folder` is part of it, since
    unpacked files of two sets may agree in all of that. `extra` is for what else the decoding depends on. Raises
    UserError for a file that cannot be looked up.
    """
    digest = hashlib.sha256(f"{folder.resolve()}\0{extra}\n".encode(errors="surrogateescape"))
    for path in sorted(files):
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error}; restore it, or remove what refers to it.") from error
        entry = f"{path.relative_to(folder).as_posix()}\0{status.st_size}\0{status.st_mtime_ns}\n"
        digest.update(entry.encode(errors="surrogateescape"))
    return digest.hexdigest()


def _roots(options: Options) -> list[Path]:
    """The folders in which copies may lie, the one for new copies first."""
    if options.cache_dir:
        return [options.cache_dir]
    beside, fallback = options.dir / _FOLDER_IN_SOURCE, Path(FALLBACK_ROOT).expanduser()
    owner = beside if beside.is_dir() else options.dir
    # The mode is looked at as well, because os.access allows root everything, also what is marked as read-only.
    if os.access(owner, os.W_OK | os.X_OK) and owner.stat().st_mode & 0o222:
        return [beside, fallback]
    return [fallback, beside]


def _source_dir(folder: Path) -> str | None:
    """The `data.dir` that a copy was made from; None where its meta.json is damaged."""
    try:
        return _read_meta(folder)["source_dir"]
    except _DamagedError:
        return None


def _read_meta(folder: Path) -> dict:
    path = folder / "meta.json"
    try:
        meta = json.loads(path.read_bytes())
        crc = meta.pop("meta_crc32")
        if meta["format"] != _FORMAT or crc != _meta_crc(meta):
            raise _DamagedError(f"{path} is damaged or of another version")
        return meta
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _DamagedError(f"{path} is missing or damaged ({error})") from error


def _read(folder: Path) -> Arrays:
    meta = _read_meta(folder)
    arrays = []
    for array in _ARRAYS:
        path = folder / f"{array}.npy"
        try:
            if _file_crc(path) != meta["crc32"][array]:
                raise _DamagedError(f"{path} is damaged (its CRC-32 differs from the one in meta.json)")
            arrays.append(np.load(path, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError) as error:
            raise _DamagedError(f"{path} is missing or damaged ({error})") from error
    train_images, train_labels, test_images, test_labels = arrays
    return train_images, train_labels, test_images, test_labels, tuple(meta["class_names"])


def _write(folder: Path, name: str, source: Path, decoded: Decoded, source_dir: Path) -> None:
    """Writes a copy that appears under the name `folder` only when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder)
    draft = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.tmp"
    draft.mkdir()
    try:
        crcs = {}
        for part, split in (("train", decoded.train), ("test", decoded.test)):
            shape = (len(split.labels), split.image_size, split.image_size, 3)
            images = _with_progress(f"{name} {part}", split)
            crcs[f"{part}_images"] = _write_array(draft / f"{part}_images.npy", shape, np.dtype(np.uint8), images)
            labels = iter([split.labels])
            crcs[f"{part}_labels"] = _write_array(
                draft / f"{part}_labels.npy", split.labels.shape, np.dtype(np.int32), labels
            )
        meta = {
            "format": _FORMAT,
            "source": str(source),
            "source_dir": str(source_dir.resolve()),
            "class_names": list(decoded.class_names),
            "crc32": crcs,
        }
        meta["meta_crc32"] = _meta_crc(meta)
        with open(draft / "meta.json", "x", encoding="utf-8") as file:
            json.dump(meta, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(draft)
        try:
            draft.rename(folder)
        except OSError:
            # Another process was faster (a folder that is not empty is never replaced): then its copy is taken.
            if not folder.is_dir():
                raise
        _sync_folder(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _remove_stale(folder: Path) -> None:
    """Removes the drafts of `folder` that killed runs left behind. A younger one may still be at work."""
    for draft in folder.parent.glob(f".{folder.name}.*.tmp"):
        try:
            is_stale = time.time() - draft.stat().st_mtime > _STALE_SECONDS
        except FileNotFoundError:
            continue
        if is_stale:
            shutil.rmtree(draft, ignore_errors=True)


def _with_progress(title: str, split: Split) -> Iterator[np.ndarray]:
    from tqdm import tqdm

    # disable=None shows the bar on a terminal only.
    with tqdm(total=len(split.labels), desc=title, unit=" images", disable=None) as bar:
        for block in split.blocks:
            yield block
            bar.update(len(block))


def _write_array(path: Path, shape: tuple[int, ...], dtype: np.dtype, blocks: Iterator[np.ndarray]) -> int:
    """Writes a .npy file block by block and returns the CRC-32 of its content."""
    header = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    crc = zlib.crc32(header.getvalue())
    with open(path, "xb") as file:
        file.write(header.getvalue())
        for block in blocks:
            data = np.ascontiguousarray(block, dtype).data
            file.write(data)
            crc = zlib.crc32(data, crc)
        file.flush()
        os.fsync(file.fileno())
    return crc


def _file_crc(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            crc = zlib.crc32(chunk, crc)
    return crc


def _meta_crc(meta: dict) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def _sync_folder(folder: Path) -> None:
    """Makes the names in a folder outlast a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
