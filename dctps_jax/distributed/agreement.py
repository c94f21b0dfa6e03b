"""What the processes of a run agree on. With one process each function returns the value that it was given.

All processes call these functions in the same order.
"""

import itertools
import json
import reprlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import jax
import numpy as np
from jax.experimental import multihost_utils

from dctps_jax.distributed import store
from dctps_jax.errors import UserError

# How long a file of process 0 may take to appear to the others, in seconds. Network file systems cache the answer that
# a file does not exist.
FILE_SECONDS = 10
# Arrays are sent in parts of at most this many bytes. Every device holds a part for a moment.
PART_BYTES = 1 << 26

_calls = itertools.count()


def is_first() -> bool:
    """Return whether this is process 0. It alone reads and writes the files of a run, decides and prints."""
    return jax.process_index() == 0


def on_first(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``function(*arguments)`` in process 0 only, and return its result, a JSON value, in all processes.

    If it raises, process 0 leaves, and the others leave with it: :mod:`dctps_jax.distributed.watch`.
    """
    if jax.process_count() == 1:
        return function(*arguments)
    key = f"first/{next(_calls)}"
    if is_first():
        value = function(*arguments)
        store.write(key, json.dumps(value))
        return value
    return json.loads(store.wait_for(key))


def gather(value: Any) -> list[Any]:
    """Return the JSON values of all processes, in the order of their numbers."""
    if jax.process_count() == 1:
        return [value]
    key = f"gather/{next(_calls)}"
    store.write(f"{key}/{jax.process_index()}", json.dumps(value))
    return [json.loads(store.wait_for(f"{key}/{process}")) for process in range(jax.process_count())]


def check_equal(what: str, advice: str, function: Callable[..., Any], *arguments: Any) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` in all processes if ``function(*arguments)`` differs in any.

    The function returns a JSON value. A single process does not call it.
    """
    if jax.process_count() == 1:
        return
    values = gather(function(*arguments))
    for process, value in enumerate(values):
        if value != values[0]:
            difference = _difference(value, values[0])
            raise UserError(f"{what} of process {process} are not those of process 0{difference}; {advice}")


def _difference(value: Any, first: Any) -> str:
    """Return the first item in which two dicts differ, in brackets for a message; "" for other values."""
    if not isinstance(value, dict) or not isinstance(first, dict):
        return ""
    difference = differing([first, value])
    if difference is None:
        return ""
    _, name = difference
    found, wanted = (reprlib.repr(values.get(name)) for values in (value, first))
    return f" ({name}: {found}, and in process 0 {wanted})"


def arrays_of_first(arrays: Mapping[str, np.ndarray] | None) -> dict[str, np.ndarray]:
    """Return the arrays of process 0 by name, in all processes. The other processes pass None."""
    described = on_first(lambda: [(name, array.shape, str(array.dtype)) for name, array in (arrays or {}).items()])
    if arrays is not None:
        sent = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays.values())
        _send(np.frombuffer(sent, np.uint8))
        return dict(arrays)
    specs = [(name, tuple(shape), np.dtype(dtype)) for name, shape, dtype in described]
    data = _send(np.zeros(sum(int(np.prod(shape)) * dtype.itemsize for _, shape, dtype in specs), np.uint8))
    received, begin = {}, 0
    for name, shape, dtype in specs:
        end = begin + int(np.prod(shape)) * dtype.itemsize
        received[name] = data[begin:end].view(dtype).reshape(shape)
        begin = end
    return received


def _send(data: np.ndarray) -> np.ndarray:
    parts = [data[begin : begin + PART_BYTES] for begin in range(0, len(data), PART_BYTES)]
    return np.concatenate([data[:0], *(np.asarray(multihost_utils.broadcast_one_to_all(part)) for part in parts)])


def check_shared(folder: Path) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` in all processes unless ``folder`` is the same directory for all.

    Process 0 writes a file, and the others look for it.
    """
    if jax.process_count() == 1:
        return
    token = folder / on_first(_write_token, folder)
    are_there = gather(_appears(token))
    if is_first():
        token.unlink(missing_ok=True)
    if not all(are_there):
        process = are_there.index(False)
        raise UserError(
            f"--workdir {folder} is another directory for process {process} than for process 0; give all processes one "
            "directory on a file system that their hosts share"
        )


def _write_token(folder: Path) -> str:
    name = f".shared-{uuid4().hex}"
    (folder / name).touch()
    return name


def _appears(file: Path) -> bool:
    until = time.monotonic() + FILE_SECONDS
    while not file.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True


class Stop:
    """Make all processes stop at the same step when one of them is asked to stop.

    Each call exchanges the answers of all devices. It returns the result of the previous call, so that no process waits
    for the step that is under way.
    """

    def __init__(self, sharding: jax.sharding.NamedSharding):
        """``sharding`` divides an array among all devices."""
        self._sharding = sharding
        whole = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        self._largest = jax.jit(lambda flags: flags.max(), out_shardings=whole)
        self._before: jax.Array | None = None

    def agreed(self, number: int | None, now: bool = False) -> int | None:
        """Return the number of a signal that any process has got, or None; ``number`` is the signal of this process.

        With ``now`` the function waits for the answer of this call.
        """
        if jax.process_count() == 1:
            return number
        own = np.full(1, number or 0, np.int32)
        flags = jax.make_array_from_callback((self._sharding.mesh.size,), self._sharding, lambda index: own)
        found = self._largest(flags)
        before, self._before = self._before, found
        answer = found if now else before
        return None if answer is None else int(answer) or None


def differing(values: Sequence[Mapping[str, Any]]) -> tuple[int, str] | None:
    """Return the first process whose mapping differs from that of process 0, and the name of a field that does."""
    for process, value in enumerate(values):
        for name in sorted(value.keys() | values[0].keys()):
            if value.get(name) != values[0].get(name):
                return process, name
    return None
