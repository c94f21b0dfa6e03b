"""How every program of the command line ends: what a user can mend is one sentence and an exit code, no traceback.

| exit code | reason |
| --- | --- |
| 0 | done |
| 1 | some runs of a sweep failed |
| 2 | an option, a config, a file or a directory cannot be used |
| 3 | the loss is not finite |
| 71 | the system is out of memory, threads or file handles |
| 74 | the disk or the quota is full |
| 75 | another process works in the directory |
| 130, 143 | stopped by Ctrl-C, by SIGTERM |
| 141 | the reader of the output is gone, as in ``… | head`` |

``DCTPS_DEBUG=1`` in the environment prints the traceback before the sentence. A mistake of this package always shows its own.
"""

import contextlib
import errno
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

from absl import logging as absl_logging

from dctps_jax.errors import DiskFull, UserError
from dctps_jax.files import DISK_IS_FULL
from dctps_jax.npz import first_line

STOPPED, SYSTEM_LIMIT, PIPE_CLOSED = 130, 71, 141

# What the system, XLA and TensorStore say where their exceptions do not tell by type.
FULL_DISK_TEXTS = ("No space left on device", "Disk quota exceeded")
LIMIT_TEXTS = (
    "RESOURCE_EXHAUSTED",
    "Out of memory",
    "Cannot allocate memory",
    "Too many open files",
    "can't start new thread",
)
LIMIT_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
MAX_REASON = 300


@contextlib.contextmanager
def command(program: str) -> Iterator[None]:
    """Run the body of a program, as a block or a decorator: end it with one sentence, ``program: message``, where it fails.

    Text that a terminal's encoding cannot show, such as file names that are no UTF-8, is printed with escapes. The
    package's warnings are one line each.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    debugs = os.environ.get("DCTPS_DEBUG") == "1"
    absl_logging.set_verbosity(absl_logging.WARNING if debugs else absl_logging.FATAL)  # of Orbax
    with _plain_warnings():
        try:
            try:
                yield
            except SystemExit:
                _flush()
                raise
            _flush()
        except BrokenPipeError:
            _drop_unwritten_output()
            sys.exit(PIPE_CLOSED)
        except (Exception, KeyboardInterrupt) as error:
            if (ending := sentence(error)) is None:
                raise
            if debugs:
                traceback.print_exception(error)
            else:
                _silence_destructors()
            with contextlib.suppress(OSError):
                print(f"{program}: {ending[0]}", file=sys.stderr)
            _drop_unwritten_output()
            sys.exit(ending[1])


def sentence(error: BaseException) -> tuple[str, int] | None:
    """Return what to tell the user of an exception, and the exit code; None for one that is a mistake of this package."""
    if (exit_code := getattr(error, "exit_code", None)) is not None:
        return str(error), DiskFull.exit_code if _is_full_disk(error.__cause__) else exit_code
    if isinstance(error, KeyboardInterrupt):
        return "stopped by SIGINT", STOPPED
    reason = first_line(error)[:MAX_REASON]
    number, file = (error.errno, error.filename) if isinstance(error, OSError) else (None, None)
    name = os.fsdecode(file) if isinstance(file, str | bytes) else None
    if _is_full_disk(error):
        message = str(DiskFull(Path(name))) if name else f"the disk or the quota is full ({reason}); make room there"
        return message, DiskFull.exit_code
    if isinstance(error, MemoryError) or number in LIMIT_ERRORS or any(text in reason for text in LIMIT_TEXTS):
        advice = "raise the limits of the shell (ulimit -a) or run less at a time"
        return f"the system is out of memory, threads or file handles ({reason}); {advice}", SYSTEM_LIMIT
    if isinstance(error, OSError):
        where = f"{name or 'a file'} cannot be read or written ({error.strerror or reason})"
        return f"{where}; mend that or name another one", UserError.exit_code
    if _passed_through(error, "orbax", "tensorstore"):
        return f"a checkpoint cannot be read or written ({reason}); restore it or take another run", UserError.exit_code
    return None


def _silence_destructors() -> None:
    """Drop what event loops and coroutines that an error left behind would print of themselves when they are deleted."""
    sys.unraisablehook = lambda _: None
    warnings.simplefilter("ignore")


def _is_full_disk(error: BaseException | None) -> bool:
    return getattr(error, "errno", None) in DISK_IS_FULL or any(text in str(error) for text in FULL_DISK_TEXTS)


def _passed_through(error: BaseException, *packages: str) -> bool:
    """Return whether an exception was raised by a package, or below it."""
    names = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(name.partition(".")[0] in packages for name in names)


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    logger, handler = logging.getLogger("dctps_jax"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    before, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _drop_unwritten_output() -> None:
    """Have the interpreter, which flushes at its end, find nothing that it cannot write."""
    try:
        _flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
