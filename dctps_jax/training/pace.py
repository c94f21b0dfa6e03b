"""How far the program may run ahead of the device."""

import time
from typing import Any

import jax

# Seconds of work, and dispatches, that may lie ahead of the device.
QUEUED_SECONDS = 2.0
MOST_QUEUED = 50


class Pace:
    """Waits for the device now and then, so that no more than :data:`QUEUED_SECONDS` of work lie ahead of it.

    What is dispatched cannot be taken back: a run that is asked to stop has to wait for all of it.
    """

    def __init__(self, most: int = MOST_QUEUED):
        self.most = most
        self._queued, self._allowed, self._last_wait = 0, 1, time.perf_counter()

    def wait(self, arrays: Any, is_due: bool = False) -> bool:
        """Note that the work for ``arrays`` is dispatched. If it is time to, wait for it. Return whether it waited."""
        self._queued += 1
        if self._queued < self._allowed and not is_due:
            return False
        jax.block_until_ready(arrays)
        seconds = (time.perf_counter() - self._last_wait) / self._queued
        self._allowed = max(1, min(self.most, int(QUEUED_SECONDS / max(seconds, 1e-6))))
        self._queued, self._last_wait = 0, time.perf_counter()
        return True
