"""Where the official archives come from, and how they get into ``data.dir``: by hand or by a download."""

import contextlib
import fcntl
import hashlib
import http.client
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dctps_jax.data.dataset import Options
from dctps_jax.errors import DiskFull, UserError

logger = logging.getLogger("dctps_jax")

_TIMEOUT_SECONDS = 30
_CHUNK = 1 << 20
_MAX_BYTES = 1 << 30  # four times the largest official archive


@dataclass(frozen=True)
class Archive:
    """An official archive: its file name, URL and digest, and the name of the folder that it holds.

    ``algorithm`` is a name that hashlib knows. Publishers and users of Tiny ImageNet give only the MD5.
    """

    file: str
    url: str
    algorithm: str
    digest: str
    folder: str


ARCHIVES = {
    "cifar10": Archive(
        "cifar-10-binary.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "sha256",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        "cifar-10-batches-bin",
    ),
    "cifar100": Archive(
        "cifar-100-binary.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "sha256",
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        "cifar-100-binary",
    ),
    "tiny_imagenet": Archive(
        "tiny-imagenet-200.zip",
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "md5",
        "90528d7ca1a48142e341f4ef8d21d0de",
        "tiny-imagenet-200",
    ),
}


def obtain(archive: Archive, options: Options) -> Path:
    """Download an archive that is missing in ``options.dir``, and return its path.

    An interrupted download leaves ``<file>.part``, from which the next download goes on. The file gets its name only
    when its digest is the official one. Raises DiskFull if there is no room for it. Raises UserError if downloads are
    switched off, the network or the disk fails, the digest differs, or something else has its name.
    """
    target, part = (options.dir / name for name in (archive.file, f"{archive.file}.part"))
    for path in (target, part):
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a regular file; remove it, so that {archive.file} can lie there")
    by_hand = f"put {archive.file} from {archive.url} into {options.dir}"
    if not options.download:
        raise UserError(
            f"{options.dir} (config.data.dir) holds neither {archive.file} nor the folder {archive.folder}, and "
            f"config.data.download is off; {by_hand}, or set config.data.download to true"
        )
    logger.info("downloading %s to %s", archive.url, target)
    try:
        options.dir.mkdir(parents=True, exist_ok=True)
        with _only_one_at_a_time(options.dir):
            if target.is_file():  # another run has just downloaded it
                return target
            _fetch(archive.url, part)
            found = _digest(part, archive.algorithm)
            if found == archive.digest:
                os.replace(part, target)
                return target
            part.unlink()
    except DiskFull:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(
            f"{archive.file} is missing in {options.dir} (config.data.dir) and cannot be downloaded from "
            f"{archive.url}: {error}; run again to go on where it stopped, or {by_hand} by hand"
        ) from error
    raise UserError(
        f"{archive.file} from {archive.url} has the {archive.algorithm} {found}, but must have {archive.digest}; the "
        f"download was removed: run again, or {by_hand} by hand"
    )


@contextlib.contextmanager
def _only_one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other process downloads into ``folder``. On file systems without locks it does nothing."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _fetch(url: str, part: Path) -> None:
    """Download ``url`` into ``part``, going on where an earlier download stopped."""
    from tqdm import tqdm

    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        return  # the part is complete; its digest tells whether it is the right file

    with response:
        if response.status != http.client.PARTIAL_CONTENT:
            start = 0  # the server ignores the range and sends the whole file
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        if total is not None and total > _MAX_BYTES:
            raise OSError(f"the server has {total:,} bytes, more than the {_MAX_BYTES:,} that are allowed")
        bar = tqdm(total=total, initial=start, desc=part.stem, unit="B", unit_scale=True, disable=None)
        try:
            with bar, open(part, "r+b" if start else "wb") as file:
                file.seek(start)
                while file.tell() <= _MAX_BYTES and (chunk := response.read(_CHUNK)):
                    file.write(chunk)
                    bar.update(len(chunk))
                received = file.tell()
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if not DiskFull.is_reason(error):
                raise
            needed = f"{total - start:,} more bytes" if total else "more bytes"
            raise DiskFull(
                f"{part.stem} needs {needed} in {part.parent}, which has no room for them ({error.strerror}); make "
                "room there and run again to go on, or set config.data.dir to a folder on another disk"
            ) from error
    if received > _MAX_BYTES:
        part.unlink()
        raise OSError(f"the server sends more than the {_MAX_BYTES:,} bytes that are allowed")
    if total is not None and received < total:
        raise OSError(f"the connection broke after {received} of {total} bytes")


def _digest(path: Path, algorithm: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
