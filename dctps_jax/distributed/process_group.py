"""The block in which several processes train together: they start as one, print as one, and leave as one."""

import atexit
import contextlib
import importlib.metadata
import io
import json
import logging
import socket
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from dctps_jax.command import sentence
from dctps_jax.config import check_names
from dctps_jax.distributed import exit_timeout
from dctps_jax.distributed.agreement import differing, gather, is_first
from dctps_jax.distributed.start import start, the_relay
from dctps_jax.distributed.watch import Watch
from dctps_jax.errors import UserError
from dctps_jax.field import flat_fields
from dctps_jax.files import digest_of

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
# The fields that may differ between hosts. The images themselves are compared when they are read.
FIELDS_OF_A_HOST = ("distributed.coordinator", "distributed.process_id", "data.dir", "data.cache_dir")

_is_open = False
_log: "HostLog | None" = None


@contextlib.contextmanager
def together(config: Any) -> Iterator[None]:
    """Join the processes that ``config.distributed`` names; hold them together until the block ends.

    - All have the same config and the same versions, or all leave.
    - A process that leaves alone, by an exception, a signal or a kill, makes the others leave: with its exit code and
      one sentence each.
    - Only process 0 prints. What the others print goes to the file that :func:`log_into` names.

    Raises :class:`~dctps_jax.errors.UserError` if they cannot join, or differ. With one process, or inside another such
    block, it does nothing.
    """
    check_names(config)
    start(config.distributed)
    if jax.process_count() == 1 or _is_open:
        yield
        return
    watch = Watch(jax.process_index(), jax.process_count(), the_relay())
    watch.begin()
    with _silent_unless_first(), _opened():
        try:
            watch.hosts = gather(socket.gethostname())
            _check_same_program(config, watch.hosts)
            yield
        except BaseException as error:
            _leave(watch, error)
            raise
        watch.leave_together(0, "")


@contextlib.contextmanager
def _opened() -> Iterator[None]:
    global _is_open
    _is_open = True
    try:
        yield
    finally:
        _is_open = False


def log_into(workdir: Path) -> None:
    """Send the output of a process that does not print to ``host_N.log`` in ``workdir``, with its earlier output."""
    if _log is not None:
        _log.open(workdir / f"host_{jax.process_index()}.log")


class HostLog(io.TextIOBase):
    """The output of a process that does not print. It is kept in memory until there is a file."""

    def __init__(self) -> None:
        self._file: io.TextIOBase = io.StringIO()

    def open(self, path: Path) -> None:
        """Write to a file from now on; can be called once."""
        if isinstance(self._file, io.StringIO):
            before, self._file = self._file.getvalue(), path.open("a", buffering=1, errors="backslashreplace")
            self._file.write(before)

    def write(self, text: str) -> int:
        return self._file.write(text)

    def flush(self) -> None:
        self._file.flush()


@contextlib.contextmanager
def _silent_unless_first() -> Iterator[None]:
    global _log
    if is_first():
        yield
        return
    _log = HostLog()
    handlers = [
        handler for handler in logging.getLogger("dctps_jax").handlers if isinstance(handler, logging.StreamHandler)
    ]
    streams = [handler.setStream(_log) for handler in handlers]
    try:
        with contextlib.redirect_stdout(_log), contextlib.redirect_stderr(_log):
            yield
    finally:
        for handler, stream in zip(handlers, streams, strict=True):
            handler.setStream(stream or sys.stderr)
        _log.flush()
        _log = None


def _check_same_program(config: Any, hosts: list[str]) -> None:
    versions = {f"the version of {name}": importlib.metadata.version(name) for name in PACKAGES}
    versions["the code of dctps_jax"] = _digest_of_code()
    fields = dict(flat_fields(json.loads(config.to_json())))
    fields = {f"config.{name}": value for name, value in fields.items() if name not in FIELDS_OF_A_HOST}
    values = gather(versions | fields)
    if found := differing(values):
        process, name = found
        raise UserError(
            f"{name} is {values[0].get(name)!r} in process 0 on {hosts[0]} and {values[process].get(name)!r} in "
            f"process {process} on {hosts[process]}; start all processes with the same command and the same packages"
        )


def _digest_of_code() -> str:
    package = Path(__file__).parents[1]
    sources = sorted(package.rglob("*.py"))
    return digest_of([(str(file.relative_to(package)), file.read_text()) for file in sources])[:12]


def _leave(watch: Watch, error: BaseException) -> None:
    """Tell the others how this process leaves, and end it without JAX's own good-bye, which waits for them."""
    if getattr(error, "is_agreed", False):
        message, code = _told(error)
        watch.leave_together(code, message)
        exit_timeout.exit_code = code
        return
    if isinstance(error, jax.errors.JaxRuntimeError):
        watch.wait_for_reason()
    message, code = _told(error)
    if sentence(error) is None and not is_first():
        traceback.print_exception(error)  # into the log
    watch.leave_alone(code, message)
    atexit.register(exit_timeout.end_at_once, code)


def _told(error: BaseException) -> tuple[str, int]:
    return sentence(error) or (f"{type(error).__name__}: {error}".splitlines()[0], 1)
