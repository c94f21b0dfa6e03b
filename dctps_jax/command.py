"""How every program of the command line ends: a mistake of the user gives one sentence and an exit code, no traceback.

docs/troubleshooting.md lists the exit codes. ``DCTPS_DEBUG=1`` in the environment also prints the traceback, before the
sentence. An exception that is a mistake of this package always shows its traceback.
"""

import contextlib
import errno
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from absl import logging as absl_logging

from dctps_jax.errors import OUT_OF_MEMORY, SPENT_HANDLES, DiskFull, UserError, first_line
from dctps_jax.files import remove_unfinished

STOPPED, PIPE_CLOSED = 130, 141

# What the system, XLA and TensorStore say in exceptions whose type does not tell the cause.
FULL_DISK = ("No space left on device", "Disk quota exceeded")
LIMITS = (
    "RESOURCE_EXHAUSTED",
    "Out of memory",
    "Cannot allocate memory",
    "Too many open files",
    "can't start new thread",
)
# The extra of pyproject.toml that brings a package.
EXTRAS = {
    "sklearn": "data",
    "tensorflow_datasets": "data",
    "matplotlib": "plots",
    "array_record": "data",
    "pyarrow": "parquet",
    "wandb": "wandb",
    "trackio": "trackio",
}
LIMIT_ERRORS = (*SPENT_HANDLES, errno.ENOMEM, errno.EAGAIN)

# Called with exit code and message when :func:`end_process` ends this one.
LAST_CALLS: list[Callable[[int, str], None]] = []


def end_process(exit_code: int, message: str) -> NoReturn:
    """Print one line, remove files that are half written, and end the process without unwinding the stack."""
    say(message)
    remove_unfinished()
    for call in LAST_CALLS:
        call(exit_code, message)
    os._exit(exit_code)


def say(message: str) -> None:
    """Print one line to the terminal, in one write."""
    program = os.path.basename(sys.argv[0]) or "dctps_jax"
    os.write(2, f"{program}: {message}\n".encode(errors="replace"))


@contextlib.contextmanager
def command(program: str) -> Iterator[None]:
    """Run the body of a program, as a block or a decorator. If it fails, end it with one line, ``program: message``.

    File names that are not UTF-8 are printed with escapes. Each warning of the package takes one line. Output appears
    line by line, also in a pipe or a file.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
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
            _drop_output()
            sys.exit(PIPE_CLOSED)
        except (Exception, KeyboardInterrupt) as error:
            if (ending := sentence(error)) is None:
                raise
            if debugs:
                traceback.print_exception(error)
            else:  # event loops and coroutines print when they are deleted with the exception
                sys.unraisablehook = lambda _: None
                warnings.simplefilter("ignore")
            with contextlib.suppress(OSError):
                print(f"{program}: {ending[0]}", file=sys.stderr)
            _drop_output()
            sys.exit(ending[1])


def sentence(error: BaseException) -> tuple[str, int] | None:
    """Return the sentence for the user and the exit code of an exception; None for a mistake of this package."""
    if (exit_code := getattr(error, "exit_code", None)) is not None:
        reason = sentence(error.__cause__) if isinstance(error.__cause__, OSError) else None
        return str(error), reason[1] if reason and exit_code == UserError.exit_code else exit_code
    if isinstance(error, KeyboardInterrupt):
        return "stopped by SIGINT", STOPPED
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
        return f"{error.name} is not installed; pip install 'dctps_jax[{EXTRAS[error.name]}]'", UserError.exit_code
    reason = first_line(error)
    number, file = (error.errno, error.filename) if isinstance(error, OSError) else (None, None)
    name = os.fsdecode(file) if isinstance(file, str | bytes) else None
    if _is_full_disk(error):
        message = f"the disk or the quota is full ({reason}); make room there"
        return str(DiskFull.at(Path(name))) if name else message, DiskFull.exit_code
    if isinstance(error, MemoryError) or number in LIMIT_ERRORS or any(text in reason for text in LIMITS):
        advice = "raise the limits of the shell (ulimit -a) or run less at a time"
        return f"the system is out of memory, threads or file handles ({reason}); {advice}", OUT_OF_MEMORY
    if isinstance(error, OSError):
        where = f"{name or 'a file'} cannot be read or written ({error.strerror or reason})"
        return f"{where}; mend that or name another one", UserError.exit_code
    if _passed_through(error, "orbax", "tensorstore"):
        return f"a checkpoint cannot be read or written ({reason}); restore it or take another run", UserError.exit_code
    return None


def _is_full_disk(error: BaseException | None) -> bool:
    is_reason = isinstance(error, OSError) and DiskFull.is_reason(error)
    return is_reason or any(text in str(error) for text in FULL_DISK)


def _passed_through(error: BaseException, *packages: str) -> bool:
    """Return whether an exception was raised by a package, or below it."""
    names = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(name.partition(".")[0] in packages for name in names)


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    logger, handler = logging.getLogger("dctps_jax"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    before, logger.propagate = (logger.propagate, logger.level), False
    # This logger has a level of its own: absl's app.run changes the root logger's, which would hide the warnings.
    logger.setLevel(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate, logger.level = before


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _drop_output() -> None:
    """Redirect what cannot be written, so that the interpreter's flush at its end does not fail."""
    try:
        _flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
