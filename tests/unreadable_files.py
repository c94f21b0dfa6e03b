"""Files that cannot be read though nothing is wrong with what they hold."""

import contextlib
import errno
import hashlib
from pathlib import Path
from unittest import mock

import pytest


@contextlib.contextmanager
def denied_permission(path):
    path_open = Path.open

    def open_or_deny(self, *args, **kwargs):
        if self == path:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return path_open(self, *args, **kwargs)

    with mock.patch.object(Path, "open", open_or_deny), pytest.raises(PermissionError):
        yield


@contextlib.contextmanager
def unreachable_file(path):
    moved = path.rename(path.with_name("moved"))
    path.symlink_to(path)
    with pytest.raises(OSError, match="symbolic links"):
        yield
    moved.rename(path)


@contextlib.contextmanager
def no_memory(path):
    with mock.patch.object(hashlib, "sha256", side_effect=MemoryError), pytest.raises(MemoryError):
        yield
