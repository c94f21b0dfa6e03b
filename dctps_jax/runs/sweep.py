"""The processes that train the runs of a sweep, some at a time."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from tqdm import tqdm

from dctps_jax.errors import UserError
from dctps_jax.runs.grid import GridPoint, in_existing_folders
from dctps_jax.runs.summary import last_line
from dctps_jax.runs.workdir import InUse, check_same, is_finished, is_in_use, read_results
from dctps_jax.user_functions import is_import_path

LOG = "log.txt"
POLL_SECONDS = 0.5


class Sweep:
    """Trains the points of a sweep, up to ``jobs`` at a time. Each has a process of ``command`` and a directory.

    Runs that are finished are skipped, and go on where they are to have more epochs or seeds. Only the command can tell
    whether a network of the user's own is still the one that a finished run trained: it is started for these runs, too.
    Runs that another process works on are waited for, and taken over where it dies. A signal stops the processes, which
    save their states first. The processors are divided among the jobs.
    """

    def __init__(self, points: Sequence[GridPoint], command: Sequence[str], workdir: Path, jobs: int = 1):
        self.points, self.command, self.workdir, self.jobs = points, command, workdir, jobs
        self.working: dict[int, tuple[GridPoint, subprocess.Popen, float]] = {}
        self.failed: dict[str, str] = {}
        self.announced: set[str] = set()
        self.unchecked: set[str] = set()
        self.signal_number: int | None = None

    def go(self) -> None:
        """Do what is not finished; afterwards ``failed`` has a reason for each run that failed.

        Raises :class:`~dctps_jax.errors.UserError`, before anything is started, where a run of another config or a
        damaged run is in the way.
        """
        if (self.workdir / "config.json").exists():
            raise UserError(
                f"--workdir {self.workdir} is the directory of a run; a sweep needs a directory of its own, choose "
                "another"
            )
        self.points = in_existing_folders(self.points, self.workdir)
        for point in self.points:
            if (self.workdir / point.name / "config.json").exists():
                check_same(self.workdir / point.name, point.config)
        finished = [point for point in self.points if self._is_finished(point)]
        for point in finished:
            read_results(self.workdir / point.name)
        self.unchecked = {point.name for point in finished if is_import_path(point.config["model"]["name"])}
        self.announced = {point.name for point in finished} - self.unchecked
        waiting = deque(point for point in self.points if point.name not in self.announced)
        print(f"{len(self.points)} runs, {len(finished)} of them finished")
        previous = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        bar = tqdm(
            total=sum(point.epochs for point in self.points),
            unit="epoch",
            disable=not sys.stderr.isatty(),
            leave=False,
            initial=sum(point.epochs for point in finished),
        )
        try:
            while self.working or (waiting and self.signal_number is None):
                for slot in range(self.jobs):
                    if slot not in self.working and self.signal_number is None:
                        self._start_one(slot, waiting)
                time.sleep(POLL_SECONDS)
                for slot, point in list(self._ended()):
                    self._report(slot, point, waiting)
                if not bar.disable:
                    bar.n = sum(
                        point.epochs if self._is_finished(point) else self._epochs_done(point) for point in self.points
                    )
                    bar.refresh()
        finally:
            for _, process, _ in self.working.values():
                process.terminate()
            bar.close()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def num_finished(self) -> int:
        return sum(map(self._is_finished, self.points))

    def _start_one(self, slot: int, waiting: deque[GridPoint]) -> None:
        """Start the first waiting run that nobody works on; drop those that others have finished."""
        for _ in range(len(waiting)):
            point = waiting.popleft()
            folder = self.workdir / point.name
            if self._is_finished(point) and point.name not in self.unchecked:
                self._announce(point, "by another process")
                continue
            if is_in_use(folder):
                waiting.append(point)
                continue
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / LOG).open("a") as log, _pinned(slot, self.jobs):
                process = subprocess.Popen(
                    [*self.command, *point.options(), "--workdir", str(folder)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    # Out of reach of the terminal's Ctrl-C: this process passes it on, once.
                    start_new_session=True,
                )
            self.working[slot] = (point, process, time.monotonic())
            if self.signal_number is not None:  # it came before the process was known
                process.terminate()
            return

    def _ended(self) -> Iterator[tuple[int, GridPoint]]:
        for slot, (point, process, _) in self.working.items():
            if process.poll() is not None:
                yield slot, point

    def _report(self, slot: int, point: GridPoint, waiting: deque[GridPoint]) -> None:
        _, process, started = self.working.pop(slot)
        was_finished = point.name in self.unchecked
        if self._is_finished(point) and not (was_finished and process.returncode):
            self.unchecked.discard(point.name)
            self._announce(point, "finished before" if was_finished else f"{time.monotonic() - started:.0f} s")
        elif process.returncode == InUse.exit_code:
            waiting.append(point)
        elif self.signal_number is None:
            reason = next((line for line in reversed(self._printed(point)) if line.strip()), "it printed nothing")
            log = self.workdir / point.name / LOG
            self.failed[point.name] = f"exit status {process.returncode}: {reason.strip()} (all of it in {log})"
            tqdm.write(f"{point.name} failed, {self.failed[point.name]}", file=sys.stderr)

    def _announce(self, point: GridPoint, how: str) -> None:
        self.announced.add(point.name)
        results = read_results(self.workdir / point.name)
        tqdm.write(f"[{len(self.announced)}/{len(self.points)}] {point.name}: {last_line(results)}, {how}")
        warnings = (line for line in self._printed(point) if line.startswith("warning: "))
        for warning in dict.fromkeys(warnings):  # a run that went on has given its warnings again
            tqdm.write(f"  {warning}")

    def _printed(self, point: GridPoint) -> list[str]:
        """Return the lines that the processes of a run have printed."""
        log = self.workdir / point.name / LOG
        return log.read_text(errors="replace").split("\n") if log.exists() else []

    def _stop(self, signal_number: int, frame: FrameType | None) -> None:
        self.signal_number = signal_number
        for _, process, _ in self.working.values():
            process.terminate()

    def _is_finished(self, point: GridPoint) -> bool:
        return is_finished(self.workdir / point.name, point.config)

    def _epochs_done(self, point: GridPoint) -> int:
        folder = self.workdir / point.name
        files = [folder / "metrics.jsonl", *folder.glob("seed_*/metrics.jsonl")]
        return sum(file.read_bytes().count(b"\n") for file in files if file.is_file())


@contextlib.contextmanager
def _pinned(slot: int, jobs: int) -> Iterator[None]:
    """Give the processes that are started meanwhile the processors of their slot, where there are some to divide."""
    if jobs == 1 or not hasattr(os, "sched_setaffinity"):
        yield
        return
    processors = os.sched_getaffinity(0)
    # They inherit this thread's; to set their own between fork and exec is not safe beside jax's threads.
    os.sched_setaffinity(0, sorted(processors)[slot::jobs] or processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, processors)
