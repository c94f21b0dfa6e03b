"""The platform that programs are traced for: the one of this process, unless a program is made for several."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax

_portable: ContextVar[bool] = ContextVar("_portable", default=False)


def on_cpu() -> bool:
    """Return whether what is traced will run on a CPU only. Layers then take what is fast on a CPU."""
    return not _portable.get() and jax.default_backend() == "cpu"


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """Trace for every platform, with native operations only."""
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)
