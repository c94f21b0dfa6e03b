"""Files and folders that are being written under a temporary name."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

_unfinished: set[Path] = set()


@contextlib.contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Remember a temporary file or folder inside the block, and remove it where the block raises.

    A process that a signal ends does not unwind; it calls :func:`remove_unfinished`.
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
