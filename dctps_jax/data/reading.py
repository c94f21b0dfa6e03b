"""Read the files of a data directory: regular files only, and never more bytes than their format can need.

The files may come from anywhere. Reading a pipe among the images would wait forever, and an archive of a few megabytes
may unpack to more than memory holds.
"""

import contextlib
import errno
import hashlib
import io
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from dctps_jax.errors import SPENT_HANDLES, UserError, first_line

_KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))


def cache_folder(name: str) -> Path:
    """Return a folder of the package in the user's cache: below $XDG_CACHE_HOME, or ~/.cache if that is not set."""
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (root if root.is_absolute() else Path("~/.cache").expanduser()) / "dctps_jax" / name


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file to read. Raises OSError if it is not a regular file or cannot be opened."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "a device")
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file", str(path))
    return path.open("rb")


def read_file(path: Path, max_bytes: int, advice: str = "replace or remove it") -> bytes:
    """Return the content of a file.

    Raises UserError, which ends with ``advice``, for a file that cannot be read, is not a regular file, or has more
    than ``max_bytes``.
    """
    try:
        with open_regular(path) as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise unreadable(path, error, advice) from error
    if len(content) > max_bytes:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes, but at most {max_bytes:,} are allowed; {advice}")
    return content


def stamp_of(folder: Path, files: Iterable[Path], extra: str = "") -> str:
    """Return a hex digest over the names (relative to ``folder``), sizes and times of change of ``files``.

    It reads no content: that would take longer than the decoded copy saves. The path of ``folder`` is part of the
    digest, since unpacked files of two sets may agree in all else. ``extra`` is for anything else that the decoding
    depends on. Raises UserError for a file whose size cannot be read.
    """
    digest = hashlib.sha256(f"{folder.resolve()}\0{extra}\n".encode(errors="surrogateescape"))
    for path in sorted(files):
        try:
            status = path.stat()
        except OSError as error:
            raise unreadable(path, error, "restore it, or remove what refers to it") from error
        entry = f"{path.relative_to(folder).as_posix()}\0{status.st_size}\0{status.st_mtime_ns}\n"
        digest.update(entry.encode(errors="surrogateescape"))
    return digest.hexdigest()


def unreadable(path: Path | str, error: OSError, advice: str) -> UserError:
    """Return the error for a file that the system does not let us read; it advises if too many files are open."""
    if error.errno in SPENT_HANDLES:
        advice = "allow more open files (ulimit -n)"
    return UserError(f"{path} cannot be read ({error.strerror or error}); {advice}")


@contextlib.contextmanager
def parsing(path: Path, advice: str) -> Iterator[None]:
    """Turn any error of a parser on a damaged file into a UserError that names ``path`` and ends with ``advice``.

    Other errors stay apart: a file that the system does not let us read, and too little memory.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # tarfile, zipfile, zlib and protobuf raise errors of many types
        # A damaged archive can name a place outside of the file. Then the system calls the argument invalid.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise unreadable(path, error, "make it readable") from error
        raise UserError(
            f"{path} is cut short or damaged ({type(error).__name__}: {first_line(error)}); {advice}"
        ) from error
