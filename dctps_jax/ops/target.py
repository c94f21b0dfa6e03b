"""The platform that programs are traced for: the one that :func:`tracing_for` names, by default that of this process.

All that depends on the platform asks here: ways of computing, costs, compiler options. A CPU can so trace and compile
the program that a TPU would compile for itself.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax

# The platform of a program for every platform: native operations only.
PORTABLE = "portable"
_platform: ContextVar[str | None] = ContextVar("_platform", default=None)


def platform() -> str:
    """Return the platform that is traced for: "cpu", "gpu", "tpu" or :data:`PORTABLE`."""
    return _platform.get() or jax.default_backend()


def on_cpu() -> bool:
    """Return whether what is traced will run on a CPU only. Layers then take what is fast on a CPU."""
    return platform() == "cpu"


@contextlib.contextmanager
def tracing_for(name: str) -> Iterator[None]:
    """Trace for the platform ``name``, whatever the platform of this process is."""
    token = _platform.set(name)
    try:
        yield
    finally:
        _platform.reset(token)
