"""The platform that is being compiled for: this process's own, unless a program is made for several."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax

_portable: ContextVar[bool] = ContextVar("_portable", default=False)


def on_cpu() -> bool:
    """Return whether what is traced will run on a CPU only, so that the ways which are fast there are taken."""
    return not _portable.get() and jax.default_backend() == "cpu"


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """Trace for every platform: native operations only."""
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)
