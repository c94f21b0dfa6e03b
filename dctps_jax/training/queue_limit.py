"""How far the program may run ahead of the device."""

import time
from typing import Any

import jax

# At most this many seconds of work, and this many dispatches, may be queued on the device.
QUEUED_SECONDS = 2.0
MOST_QUEUED = 50


class Pace:
    """Waits for the device now and then, so that at most :data:`QUEUED_SECONDS` of work are queued on it.

    A dispatch cannot be taken back: a run that is asked to stop has to wait for all queued work.
    """

    def __init__(self, most: int = MOST_QUEUED):
        self.most = most
        self._queued, self._allowed, self._last_wait = 0, 1, time.perf_counter()

    def wait(self, arrays: Any, is_due: bool = False) -> bool:
        """Note that the work for ``arrays`` is dispatched; wait for it if it is time. Return whether it waited."""
        self._queued += 1
        if self._queued < self._allowed and not is_due:
            return False
        jax.block_until_ready(arrays)
        seconds = (time.perf_counter() - self._last_wait) / self._queued
        self._allowed = max(1, min(self.most, int(QUEUED_SECONDS / max(seconds, 1e-6))))
        self._queued, self._last_wait = 0, time.perf_counter()
        return True
