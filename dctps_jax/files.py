"""Read files and JSON, write files whole or not at all, also if a signal ends the process, and print any file name."""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dctps_jax.errors import SPENT_HANDLES, DiskFull, UserError

_unfinished: set[Path] = set()


@contextlib.contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Remember a temporary file or folder inside the block, and remove it if the block raises.

    A process that a signal ends does not unwind its stack; it calls :func:`remove_unfinished`.
    """
    _unfinished.add(path)
    try:
        yield path
    except BaseException:
        _remove(path)
        raise
    finally:
        _unfinished.discard(path)


def remove_unfinished() -> None:
    """Remove all temporary files and folders that are being written."""
    for path in tuple(_unfinished):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name, flush it to the disk, then rename it.

    Raises :class:`~dctps_jax.errors.DiskFull`, or an ``OSError`` that names ``path``.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        # tempfile would make files that only their owner may read, whatever the umask.
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        with unfinished(temporary):
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except OSError as error:
        if DiskFull.is_reason(error):
            raise DiskFull.at(path, len(data)) from error
        raise OSError(error.errno, error.strerror, str(path)) from error


def check_target(option: str, path: Path) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` if no file can be written to ``path``, the value of ``option``."""
    if path.is_dir():
        raise UserError(f"{option} is {path}, which is a directory; name a file")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{option} is {path}, but {path.parent} is no directory; create it or name another one")
    if path.exists() and not path.is_file():
        raise UserError(f"{option} is {path}, which is a device or a pipe; name a file")


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text; every mistake in it raises ``ValueError``."""
    try:
        return json.loads(text.decode() if isinstance(text, bytes) else text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def digest_of(value: Any) -> str:
    """Return a SHA-256 of a JSON value. The order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_file(path: Path) -> bytes:
    """Return the content of a file of a run.

    Raises :class:`~dctps_jax.errors.UserError` if it cannot be read, or is not a regular file: reading a pipe would
    hang. Raises ``OSError`` if the process has too many files open: then nothing is wrong with this file.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} cannot be read: it is a directory, a device or a pipe; restore the file")
        return path.read_bytes()
    except OSError as error:
        if error.errno in SPENT_HANDLES:
            raise
        raise UserError(f"{path} cannot be read ({error.strerror}); restore it or choose another directory") from error


def read_json(path: Path) -> Any:
    """Read a JSON file; raise :class:`~dctps_jax.errors.UserError`, which names it, if it is missing or damaged."""
    if not path.exists():
        raise UserError(f"{path} does not exist; give the directory of a run")
    try:
        return parse_json(read_file(path))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); restore it or choose another directory") from error


def is_printable(text: str) -> bool:
    """Return whether a text is free of the escapes that Python puts for bytes of file names that are not UTF-8."""
    return printable(text) == text


def printable(text: str) -> str:
    """Return a text that reports and figures can print: bytes of file names that are not UTF-8 become escapes."""
    return text.encode(errors="backslashreplace").decode()
