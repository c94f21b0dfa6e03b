"""End this process when another one of its run has ended early or does not answer any more.

JAX alone would wait for that process for minutes, in an operation that needs all processes, and then abort.

Each process writes a beat a second to the store, and process 0 looks at all beats. A process that leaves writes a
departure, which says why. The others read it and leave with the same exit code.
"""

import itertools
import json
import threading
import time
from typing import NamedTuple

import jax

from dctps_jax.command import LAST_CALLS, end_process
from dctps_jax.distributed import store
from dctps_jax.distributed.relay import Relay

# The exit code where a process is gone: EX_UNAVAILABLE of sysexits.h.
GONE = 69
BEAT_SECONDS = 1.0
# A process whose last beat is this many seconds old is gone.
PATIENCE_SECONDS = 20.0
# … if an operation of all processes has failed already.
SHORT_PATIENCE_SECONDS = 6.0
# How long a process waits for another one's reason before it leaves, and process 0 for the others, in seconds.
GRACE_SECONDS = 3.0

# Runs of a program, one after the other, each with texts of its own in the store.
_runs = itertools.count()


class Departure(NamedTuple):
    """How a process has left: with others at one place of the program (agreed), or alone."""

    code: int
    message: str
    is_agreed: bool


class Watch:
    """Watches the other processes from :meth:`begin` on, until this one leaves."""

    def __init__(self, process: int, num_processes: int, relay: Relay | None):
        self.process, self._relay = process, relay
        # The names of the processes' hosts by number, once they are known.
        self.hosts = ["a host unknown so far"] * num_processes
        self._run = next(_runs)
        self._patience, self._left, self._ending = PATIENCE_SECONDS, threading.Event(), threading.Lock()
        # Process 0 watches all others. They watch process 0, which answers as the store.
        watched = range(1, num_processes) if process == 0 else range(1)
        self._beats: dict[int, tuple[str, float]] = {process: ("", time.monotonic()) for process in watched}
        self._departures: dict[int, Departure] = {}

    def begin(self) -> None:
        LAST_CALLS.append(self._last_call)
        if self._relay is not None:
            self._relay.on_lost = self._lose_first
        for function in (self._exchange, self._judge):
            threading.Thread(target=function, name="watch", daemon=True).start()

    def leave_together(self, code: int, message: str) -> None:
        """Leave at a place of the program where all processes leave. Process 0 leaves last, since it has the store."""
        self._depart(code, message, is_agreed=True)
        while self.process == 0 and not self._are_all_gone():
            time.sleep(0.05)
        self._end_watch()

    def leave_alone(self, code: int, message: str) -> None:
        """Make the others leave with this process, with its exit code and message."""
        self._ending.acquire()  # never returns if another thread ends the process
        self._depart_alone(code, message)
        self._end_watch()

    def wait_for_reason(self) -> None:
        """After an operation of all processes has failed, wait for a while; end this process if another one is gone."""
        self._patience = SHORT_PATIENCE_SECONDS
        time.sleep(SHORT_PATIENCE_SECONDS + GRACE_SECONDS + 2 * BEAT_SECONDS)

    def _end_watch(self) -> None:
        self._left.set()
        LAST_CALLS.remove(self._last_call)

    def _depart(self, code: int, message: str, is_agreed: bool) -> None:
        store.write(f"left/{self._run}/{self.process}", json.dumps(Departure(code, message, is_agreed)))

    def _depart_alone(self, code: int, message: str) -> None:
        self._depart(code, message, is_agreed=False)
        until = time.monotonic() + 2 * GRACE_SECONDS
        while self.process == 0 and not self._are_all_gone() and time.monotonic() < until:
            time.sleep(0.05)

    def _are_all_gone(self) -> bool:
        return len(self._departures.keys() - {self.process}) == len(self.hosts) - 1

    def _exchange(self) -> None:
        """Write beats, read the departures, and in process 0 the beats."""
        number = 0
        while not self._left.is_set():
            number += 1
            try:
                store.write(f"beat/{self._run}/{self.process}", str(number))
                departures = store.read_all(f"left/{self._run}")
                beats = store.read_all(f"beat/{self._run}") if self.process == 0 else {"0": str(number)}
            except jax.errors.JaxRuntimeError:  # process 0 does not answer: its beat grows old
                time.sleep(BEAT_SECONDS)
                continue
            for process, text in departures.items():
                self._departures.setdefault(int(process), Departure(*json.loads(text)))
            for process, (before, _) in self._beats.items():
                beat = beats.get(str(process), "")
                if beat != before:
                    self._beats[process] = beat, time.monotonic()
            time.sleep(BEAT_SECONDS)

    def _judge(self) -> None:
        first_seen = None
        while not self._left.wait(BEAT_SECONDS / 4):
            now = time.monotonic()
            failed = [
                process
                for process, departure in list(self._departures.items())
                if process != self.process and not departure.is_agreed
            ]
            if failed:
                first_seen = first_seen or now
                if now - first_seen > GRACE_SECONDS:
                    self._follow(min(failed))
                continue
            for process, (_, last) in list(self._beats.items()):
                if now - last > self._patience and process not in self._departures:
                    self._miss(process)

    def _follow(self, process: int) -> None:
        """End this process because another one has left."""
        code, message, _ = self._departures[process]
        self._end(code, message if code == GONE else f"process {process} on {self.hosts[process]}: {message}")

    def _miss(self, process: int) -> None:
        """End this process because another one is gone."""
        where = f"process {process} on {self.hosts[process]}"
        self._departures.setdefault(process, Departure(GONE, "", False))
        self._end(GONE, f"{where} is gone; the same command goes on from the last checkpoint")

    def _lose_first(self) -> None:
        """The connection to process 0 is lost."""
        if self._left.is_set():
            return
        departure = self._departures.get(0)
        if departure is not None and not departure.is_agreed:
            self._follow(0)
        else:
            self._miss(0)

    def _end(self, code: int, message: str) -> None:
        if self._ending.acquire(blocking=False):
            end_process(code, message)

    def _last_call(self, code: int, message: str) -> None:
        """Tell the others when :func:`~dctps_jax.command.end_process` ends this process."""
        if 0 in self._departures and self.process > 0:  # the store has left with it
            return
        told = threading.Thread(target=self._depart_alone, args=(code, message), daemon=True)
        told.start()
        told.join(3 * GRACE_SECONDS)  # the store may not answer
