"""Limits of the system that hold inside a block."""

import contextlib
import os
import resource


@contextlib.contextmanager
def limited(limit, value):
    soft, hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(limit, (soft, hard))


@contextlib.contextmanager
def no_more_handles():
    """No file can be opened inside."""
    free = os.dup(0)
    os.close(free)
    with limited(resource.RLIMIT_NOFILE, free):
        yield


@contextlib.contextmanager
def no_room(num_bytes):
    """No file can grow beyond `num_bytes` inside, as on a full disk."""
    with limited(resource.RLIMIT_FSIZE, num_bytes):
        yield
