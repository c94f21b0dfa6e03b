"""Decoded copies of image sets on disk, so that only the first run has to decode the images.

A copy is the folder ``<name>-<stamp of the source>`` with four .npy files and meta.json. It is written under a
temporary name next to its final name and renamed when it is whole. So a killed run leaves no half copy, and if two runs
decode at once, the second takes the copy of the first. Every load checks the CRC-32 of each file. That detects failing
disks and truncated copies, and is the fastest digest at hand (about 2 GB/s). The images are memory-mapped, read-only.
"""

import contextlib
import errno
import io
import json
import logging
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from dctps_jax.data.dataset import Arrays, Decoded, DecodedPart, Options
from dctps_jax.data.reading import cache_folder, open_regular, unreadable
from dctps_jax.errors import SPENT_HANDLES, DiskFull, UserError, first_line
from dctps_jax.files import unfinished

logger = logging.getLogger("dctps_jax")

_FOLDER_IN_SOURCE = ".dctps_cache"
_FORMAT = 1
# Name, type and number of axes.
_ARRAYS = (
    ("train_images", np.uint8, 4),
    ("train_labels", np.int32, 1),
    ("test_images", np.uint8, 4),
    ("test_labels", np.int32, 1),
)
_MAX_META_BYTES = 2**26
_STALE_SECONDS = 24 * 3600
# Errors of the system for a missing file, or something that is not a file. Other errors are not damage: the copy stays.
_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL)


class _DamagedError(Exception):
    """A decoded copy that differs from what was written; the message names the file."""


def cached(name: str, source: Path, stamp: str, options: Options, decode: Callable[[], Decoded]) -> Arrays:
    """Return train images, train labels, test images, test labels and class names; decode only if there is no copy.

    ``stamp`` stands for the content of ``source``. The copy goes below ``options.cache_dir``, or else below
    dctps_jax/decoded in the user's cache, and its place is printed. A damaged copy is reported in a warning, removed
    and made again.

    Raises DiskFull if there is no room for the copy, UserError if it cannot be written or read for another reason, and
    whatever ``decode`` raises.
    """
    folders = [root / f"{name}-{stamp[:12]}" for root in _roots(options)]
    # A second round is only needed if another process removes or damages the copy at this moment.
    for _ in range(3):
        for folder in folders:
            if folder.is_dir():
                try:
                    return _read(folder)
                except _DamagedError as damage:
                    logger.warning("%s; the decoded copy is made again from %s", damage, source)
                    shutil.rmtree(folder, ignore_errors=True)
        print(f"decoding {source} once into {folders[0]} (config.data.cache_dir)")
        decoded = decode()
        try:
            _write(folders[0], name, source, decoded, options.dir)
        except OSError as error:
            raise _unwritable(folders[0], source, decoded.num_bytes, error) from error
    raise UserError(
        f"{folders[0]} is damaged after it was written; set config.data.cache_dir to a folder on another disk"
    )


def cached_without_source(name: str, options: Options) -> Arrays | None:
    """Return the decoded copy of a source that once lay in ``options.dir``; None if there is none or more than one.

    Raises UserError if the copy is damaged.
    """
    # A root may serve several folders. The copy of another folder, perhaps of a subset, must not be taken for this one.
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
            f"{damage}, and there is nothing in {options.dir} (config.data.dir) to make it again from; put the source "
            f"of '{name}' there, or remove {copies[0]}"
        ) from damage


def _unwritable(folder: Path, source: Path, num_bytes: int, error: OSError) -> UserError:
    """Return the error for a decoded copy of ``num_bytes`` that cannot be written."""
    if DiskFull.is_reason(error):
        return DiskFull(
            f"the decoded copy of {source} needs {num_bytes:,} bytes in {folder.parent}, which has no room for them "
            f"({error.strerror}); make room there, or set config.data.cache_dir to a folder on another disk"
        )
    reason, advice = f"{error.strerror or error}", "set config.data.cache_dir to a folder that can be written to"
    if is_file := next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None):
        reason = f"{is_file} is a file"
    if error.errno in SPENT_HANDLES:
        advice = "allow more open files (ulimit -n)"
    return UserError(f"the decoded copy of {source} cannot be written to {folder} ({reason}); {advice}")


def _roots(options: Options) -> list[Path]:
    """Return the folders in which copies may lie, the one for new copies first.

    Version 0.1.0 wrote them beside the images.
    """
    roots = options.cache_dir or cache_folder("decoded"), options.dir / _FOLDER_IN_SOURCE
    return list(dict.fromkeys(root.resolve() for root in roots))  # they may be the same


def _source_dir(folder: Path) -> str | None:
    """Return the ``data.dir`` that a copy was made from; None if its meta.json is damaged."""
    try:
        return _read_meta(folder)["source_dir"]
    except _DamagedError:
        return None


def _read_meta(folder: Path) -> dict:
    path = folder / "meta.json"
    with _finding_damage(path):
        with open_regular(path) as file:
            meta = json.loads(file.read(_MAX_META_BYTES))
        crc = meta.pop("meta_crc32")
        if meta["format"] != _FORMAT or crc != _meta_crc(meta):
            raise ValueError("a checksum or version differs")
        kinds = {"source_dir": str, "class_names": list, "crc32": dict}
        is_whole = all(isinstance(meta.get(field), kind) for field, kind in kinds.items())
        if not is_whole or not all(isinstance(name, str) for name in meta["class_names"]):
            raise ValueError("its fields are others")
        if meta.get("folder", folder.name) != folder.name:  # copies of version 0.1.0 do not have it
            raise ValueError(f"it is of {meta['folder']}, the copy of another source")
        return meta


def _read(folder: Path) -> Arrays:
    meta = _read_meta(folder)
    arrays = []
    for name, dtype, axes in _ARRAYS:
        path = folder / f"{name}.npy"
        with _finding_damage(path):
            if _file_crc(path) != meta["crc32"].get(name):
                raise ValueError("its CRC-32 differs from the one in meta.json")
            array = np.lib.format.open_memmap(path, mode="r")
            if array.dtype != dtype or array.ndim != axes:
                raise ValueError(f"it holds {array.dtype} {list(array.shape)}")
            arrays.append(array)
    train_images, train_labels, test_images, test_labels = arrays
    return train_images, train_labels, test_images, test_labels, tuple(meta["class_names"])


@contextlib.contextmanager
def _finding_damage(path: Path) -> Iterator[None]:
    """Tell damage from a refusal of the system. After a refusal the copy may be sound, so it must be kept."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # on damaged files, json and numpy raise errors of many types
        if isinstance(error, OSError) and error.errno not in _DAMAGE:
            advice = "make it readable, or set config.data.cache_dir to another folder"
            raise unreadable(path, error, advice) from error
        state = "missing" if isinstance(error, FileNotFoundError) else "damaged"
        raise _DamagedError(f"{path} is {state} ({first_line(error)})") from error


def _write(folder: Path, name: str, source: Path, decoded: Decoded, source_dir: Path) -> None:
    """Write a copy that appears under the name ``folder`` only when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder)
    with unfinished(folder.parent / f".{folder.name}.{uuid.uuid4().hex}.tmp") as draft:
        draft.mkdir()
        crcs = {}
        for part, split in (("train", decoded.train), ("test", decoded.test)):
            images = _with_progress(f"{name} {part}", split)
            crcs[f"{part}_images"] = _write_array(draft / f"{part}_images.npy", split.shape, np.dtype(np.uint8), images)
            labels = iter([split.labels])
            crcs[f"{part}_labels"] = _write_array(
                draft / f"{part}_labels.npy", split.labels.shape, np.dtype(np.int32), labels
            )
        meta = {
            "format": _FORMAT,
            "source": str(source),
            "source_dir": str(source_dir.resolve()),
            "folder": folder.name,
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
            if not folder.is_dir():
                raise
            # Another process was faster: its copy is taken. (A folder that is not empty is never replaced.)
            shutil.rmtree(draft, ignore_errors=True)
        _sync_folder(folder.parent)


def _remove_stale(folder: Path) -> None:
    """Remove the drafts of ``folder`` that killed runs left. Young drafts stay: another run may be writing them."""
    for draft in folder.parent.glob(f".{folder.name}.*.tmp"):
        try:
            is_stale = time.time() - draft.stat().st_mtime > _STALE_SECONDS
        except FileNotFoundError:
            continue
        if is_stale:
            shutil.rmtree(draft, ignore_errors=True)


def _with_progress(title: str, split: DecodedPart) -> Iterator[np.ndarray]:
    from tqdm import tqdm

    # disable=None shows the bar on a terminal only.
    with tqdm(total=len(split.labels), desc=title, unit=" images", disable=None) as bar:
        for block in split.blocks:
            yield block
            bar.update(len(block))


def _write_array(path: Path, shape: tuple[int, ...], dtype: np.dtype, blocks: Iterator[np.ndarray]) -> int:
    """Write a .npy file block by block and return the CRC-32 of its content."""
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
    with open_regular(path) as file:
        while chunk := file.read(1 << 22):
            crc = zlib.crc32(chunk, crc)
    return crc


def _meta_crc(meta: dict) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def _sync_folder(folder: Path) -> None:
    """Flush a folder to the disk, so that the names in it survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
