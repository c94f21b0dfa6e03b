"""Read images ahead of their use, in the background, in a fixed order, with grain."""

import contextlib
import gc
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import flags

from dctps_jax.errors import UserError

MOST_IN_A_BLOCK = 32
NUM_THREADS = min(16, os.cpu_count() or 1)  # more threads would wait for each other: Python runs one at a time


class Blocks:
    """The images in some rows, in blocks of equal length, in the order of the rows."""

    def __init__(self, images: Any, rows: np.ndarray, length: int):
        self.images, self.rows, self.length = images, rows, length

    def __len__(self) -> int:
        return -(-len(self.rows) // self.length)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.images[self.rows[index * self.length : (index + 1) * self.length]]


def read_ahead(images: Any, rows: np.ndarray, multiple_of: int, num_processes: int = 0) -> Iterator[np.ndarray]:
    """Yield the images in ``rows``, in their order, in blocks whose length divides ``multiple_of``.

    ``images`` is an array, or stands in for one. Threads of this process read it, or ``num_processes`` other processes,
    to which it is pickled. Blocks for two batches of ``multiple_of`` images are ready or being read. Raises UserError
    for an image that cannot be read, and if one of the processes ends.
    """
    import grain

    length = max(divisor for divisor in range(1, MOST_IN_A_BLOCK + 1) if multiple_of % divisor == 0)
    num_threads = max(1, NUM_THREADS // max(1, num_processes))
    num_blocks = max(num_threads, -(-2 * multiple_of // length))
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_blocks)
    blocks: Any = grain.MapDataset.source(Blocks(images, rows, length)).to_iter_dataset(options)
    if num_processes:
        if not flags.FLAGS.is_parsed():  # grain 0.2.18 reads its flags, also in programs without flags
            flags.FLAGS.mark_as_parsed()
        in_each = max(1, -(-num_blocks // num_processes))
        blocks = blocks.mp_prefetch(grain.MultiprocessingOptions(num_processes, in_each), _begin_process)
    iterator = iter(blocks)
    try:
        # The blocks of another process lie in shared memory. A copy releases it at once.
        yield from map(np.array, iterator) if num_processes else iterator
    except RuntimeError as error:
        if "terminated unexpectedly" not in str(error):
            raise
        raise UserError(
            "a process that reads images ended, perhaps for want of memory; give the same command again, or lower "
            "config.data.processes"
        ) from error
    finally:
        iterator.close()
        if num_processes:
            # grain 0.2.18 keeps the last block in a cycle of references. Python cannot free its shared memory at its
            # end (test_no_shared_memory_is_left).
            del iterator, blocks
            gc.collect()
            _wait_until_freed()


def _wait_until_freed() -> None:
    """Wait until the blocks are freed: grain 0.2.18 frees them in a thread, which ends with the program.

    On a busy machine the program ended first, and Python warned of shared memory that was left
    (test_no_shared_memory_is_left).
    """
    try:
        from grain._src.python.ipc.shared_memory_array import SharedMemoryArray

        freeing: Any = SharedMemoryArray._del_thread_pool
    except (ImportError, AttributeError):  # another version of grain
        return
    if freeing is not None:
        with contextlib.suppress(ValueError):  # the program is ending and has stopped the thread
            freeing.apply_async(int).wait(timeout=5)  # runs after all earlier work of the one thread


def _begin_process(number: int, count: int) -> None:
    """Leave signals to the program that reads, which then also saves; end when that program ends, however it ends."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def one_ahead(values: Iterator[Any]) -> Iterator[Any]:
    """Yield each value after asking for the next one, so that the next one reaches the device meanwhile."""
    ahead = list(itertools.islice(values, 1))
    for value in values:
        ahead.append(value)
        yield ahead.pop(0)
    yield from ahead
