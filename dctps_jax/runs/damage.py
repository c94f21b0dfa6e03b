"""What counts as damage to a checkpoint, and what does not."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

# The folder that damaged files and checkpoints are moved to.
DAMAGED = "damaged"


class Damaged(Exception):
    """A checkpoint that is not as it was written: a file is missing, or its content does not match its digest.

    A missing permission, a lack of memory, threads or file handles, or a disk error is not damage. The checkpoint may
    be intact, so the reader lets that error through.
    """


def read_bytes(path: Path) -> bytes:
    """Return the content of a file; if there is none, the checkpoint is :class:`Damaged`."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise Damaged(f"{path.name} is no file")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Damaged(f"{path.name} is missing") from error


def read_tree(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files below ``folder`` by their path in it. A folder without permission raises."""

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    paths = [Path(parent, name) for parent, _, names in os.walk(folder, onerror=fail) for name in names]
    return {path.relative_to(folder).as_posix(): read_bytes(path) for path in paths}


@contextlib.contextmanager
def decoding(message: str) -> Iterator[None]:
    """Turn errors into :class:`Damaged`, for the decoding of bytes that are in memory already.

    Such errors come from the bytes, except a lack of memory or of threads, which passes through.
    """
    try:
        yield
    except (Damaged, MemoryError, OSError):
        raise
    except Exception as error:
        is_of_system = isinstance(error, RuntimeError) or "RESOURCE_EXHAUSTED" in str(error)
        if is_of_system and not isinstance(error, RecursionError | NotImplementedError):
            raise
        raise Damaged(message) from error
