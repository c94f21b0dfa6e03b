"""Runs the real programs, command line and all, in this process: importing JAX anew for each would take seconds."""

import contextlib
import io
import logging
import os
import runpy
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from absl import flags
from absl import logging as absl_logging

REPO = Path(__file__).parents[2]
TIMEOUT_SECONDS = 30


class Hung(BaseException):
    """A program took longer than allowed; no program catches this."""


class Ended(NamedTuple):
    """How a program ended: exit code, what it wrote, and the traceback of an exception that nothing caught."""

    code: int
    out: str
    err: str
    trace: str = ""

    @property
    def messages(self) -> list[str]:
        """The lines on stderr that are no warning."""
        return [line for line in self.err.splitlines() if not line.startswith("warning: ")]


def program(name: str, *arguments: object, stop_at: str = "") -> Ended:
    """Run a script of the checkout (``train.py``) or a module of the package, as a shell would.

    With ``stop_at`` the process gets SIGTERM as soon as a line with this text is printed.
    """
    out, err, trace, code = _Output(stop_at), io.StringIO(), "", 0
    with _restored(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        sys.argv = [str(REPO / name) if name.endswith(".py") else name, *map(str, arguments)]
        try:
            if name.endswith(".py"):
                runpy.run_path(sys.argv[0], run_name="__main__")
            else:
                runpy.run_module(name, run_name="__main__", alter_sys=True)
        except SystemExit as ending:
            code = _exit_code(ending, err)
        except Exception:
            code, trace = 1, traceback.format_exc()
    return Ended(code, out.getvalue(), err.getvalue(), trace)


@contextlib.contextmanager
def time_limit(folder: Path, seconds: int = TIMEOUT_SECONDS) -> Iterator[None]:
    """Raise :class:`Hung` in what takes longer, and let go of threads that wait for a FIFO below ``folder``."""
    hung = False

    def ring(*_: object) -> None:
        nonlocal hung
        for path in folder.rglob("*"):
            if path.is_fifo():
                with contextlib.suppress(OSError):  # nobody waits for it
                    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        if not hung:
            hung = True
            raise Hung

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    if hung:
        raise Hung


class _Output(io.StringIO):
    def __init__(self, stop_at: str):
        super().__init__()
        self.stop_at = stop_at

    def write(self, text: str) -> int:
        if self.stop_at and self.stop_at in text:
            self.stop_at = ""
            os.kill(os.getpid(), signal.SIGTERM)
        return super().write(text)


def _exit_code(ending: SystemExit, err: io.StringIO) -> int:
    if isinstance(ending.code, str):  # as Python itself does
        err.write(f"{ending.code}\n")
        return 1
    return int(ending.code or 0)


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Undo what a program changes of its process."""
    ours, root = logging.getLogger("dctps_jax"), logging.getLogger()
    argv, path, handlers = sys.argv, list(sys.path), (list(ours.handlers), list(root.handlers), ours.propagate)
    listeners = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    verbosity, hook = absl_logging.get_verbosity(), sys.unraisablehook
    _forget_flags()
    sys.path.insert(0, str(REPO))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*found in sys.modules.*", category=RuntimeWarning)
            # dctps_jax.data.images does so for a process, once; here each program has warnings of its own.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        _forget_flags()
        for number, listener in listeners.items():
            signal.signal(number, listener)
        absl_logging.set_verbosity(verbosity)
        sys.unraisablehook = hook
        ours.handlers, root.handlers, ours.propagate = handlers
        sys.argv, sys.path[:] = argv, path


def _forget_flags() -> None:
    """A program defines its flags anew each time that it runs; those of absl itself stay."""
    for name in ("train", "sweep"):
        sys.modules.pop(f"dctps_jax.cli.{name}", None)
    for name in list(flags.FLAGS):
        if name.partition(".")[0] in ("config", "workdir", "sweep", "jobs"):
            delattr(flags.FLAGS, name)
