"""Many runs of one config: a grid over its fields, a directory and a process for each run."""

import contextlib
import copy
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from tqdm import tqdm

from dctps_jax.config import check_all_is_read, check_config, check_names, check_type, resolve, unknown_field
from dctps_jax.defaults import FIELDS
from dctps_jax.errors import UserError
from dctps_jax.field import flat_fields
from dctps_jax.own import is_import_path
from dctps_jax.runs.summary import last_line
from dctps_jax.runs.workdir import (
    ADDED_FIELDS,
    GROWING_FIELDS,
    InUse,
    check_same,
    identity,
    is_finished,
    is_in_use,
    name_of_run,
    read_config,
    read_results,
)

LOG = "log.txt"
POLL_SECONDS = 0.5


class GridPoint(NamedTuple):
    """One point of a grid: its directory's name, the fields that it sets, its whole config and its number of epochs."""

    name: str
    fields: dict[str, Any]
    config: dict[str, Any]
    epochs: int

    def options(self) -> list[str]:
        """Return what sets its fields on the command line of ``train.py``."""
        return [f"--config.{field}={value}" for field, value in self.fields.items()]


def plan_runs(config: Any, grids: Any) -> list[GridPoint]:
    """Return the points of the grids: all combinations of each grid's values, without repetitions.

    A grid maps dotted fields to lists of values. Every point's config is checked. Raises
    :class:`~dctps_jax.errors.UserError` for anything that is no grid, fields that do not exist and values not allowed.
    """
    points: list[GridPoint] = []
    check_names(config)
    for grid in _checked(grids):
        for values in itertools.product(*grid.values()):
            fields = dict(zip(grid, values, strict=True))
            for field, value in fields.items():
                check_type(field, value)
            single = copy.deepcopy(config)  # with its references, which follow the fields that are set
            single.update_from_flattened_dict(fields)
            single = resolve(single)
            check_config(single, check_devices=False)
            check_all_is_read(single)
            point = GridPoint(
                name_of(fields), fields, json.loads(single.to_json()), single.num_epochs * single.num_seeds
            )
            if not any(point.config == other.config for other in points):
                points.append(point)
    return _with_names(points)


def _with_names(points: Sequence[GridPoint]) -> list[GridPoint]:
    """Return the points with a name for each, longer ones where values differ in no letter: "fc" and "fc*"."""
    count = Counter(point.name for point in points)
    points = [
        point if count[point.name] == 1 else point._replace(name=former_name_of(point.fields)) for point in points
    ]
    for name, number in Counter(point.name for point in points).items():
        if number > 1:
            raise UserError(f"the sweep has two runs that would be called {name}; choose values that differ in letters")
    return points


def _checked(grids: Any) -> list[dict[str, Sequence[Any]]]:
    """Return the grids as a list, each with fields that exist and lists of values."""
    checked: list[Any] = list(grids) if isinstance(grids, list | tuple) and grids else [grids]
    for grid in checked:
        _check_grid(grid)
    return checked


def _check_grid(grid: Any) -> None:
    if not isinstance(grid, Mapping) or not grid:
        raise UserError(
            f"the sweep holds {grid!r}; it must be grids of fields and values: {{'pruning.density': (0.1, 0.01)}}"
        )
    for field, values in grid.items():
        if field not in FIELDS:
            raise UserError(unknown_field(field))
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise UserError(f"the sweep has {values!r} for config.{field}; it must be a list of values, e.g. (0, 1, 2)")


def name_of(fields: Mapping[str, Any]) -> str:
    """Return the name of a directory for a run that sets some fields of its config: "num_epochs=3,seed=1".

    Characters that a name should not have are a hyphen between the others: "model.options=width-4".
    """
    return ",".join(f"{field}={_as_name(value)}" for field, value in sorted(fields.items()))


def former_name_of(fields: Mapping[str, Any]) -> str:
    """Return the name that earlier versions gave: each of those characters is an underscore."""
    return ",".join(f"{field}={_as_former_name(value)}" for field, value in sorted(fields.items()))


def _as_name(value: Any) -> str:
    return re.sub(r"[^\w.+-]+", " ", str(value)).strip().replace(" ", "-") or "_"


def _as_former_name(value: Any) -> str:
    return re.sub(r"[^\w.+-]", "_", str(value)) or "_"


def in_existing_folders(points: Sequence[GridPoint], workdir: Path) -> list[GridPoint]:
    """Return the points of a sweep, each by the name of the directory below ``workdir`` that is of the same run.

    A sweep with more fields gives its directories longer names; runs of an earlier sweep keep theirs, also when they
    are to grow. A directory whose name sets the number of epochs or seeds does not grow.
    """
    exact: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    growing: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for file in sorted(workdir.glob("*/config.json")):
        name, config = file.parent.name, ADDED_FIELDS | dict(flat_fields(read_config(file.parent)))
        grows = not any(part.startswith(tuple(f"{field}=" for field in GROWING_FIELDS)) for part in name.split(","))
        # A run has the type that it began with in its config, where the sweep may leave it open.
        for same in (config, config | {"model.dtype": "auto"}):
            exact[identity(same)].append((name, same))
            if grows:
                growing[name_of_run(same)].append((name, same))
    found = []
    for point in points:
        name = point.name
        if not (workdir / name).exists():
            # Fields that do not count for the identity may be varied, e.g. execution.method.
            asked = {field: value for field, value in flat_fields(point.config) if field in point.fields}
            candidates = exact[identity(point.config)] + growing[name_of_run(point.config)]
            name = next((name for name, config in candidates if asked.items() <= config.items()), name)
        found.append(point._replace(name=name))
    return found


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
            log = self.workdir / point.name / LOG
            lines = log.read_text(errors="replace").split("\n")
            reason = next((line for line in reversed(lines) if line.strip()), "it printed nothing")
            self.failed[point.name] = f"exit status {process.returncode}: {reason.strip()} (all of it in {log})"
            tqdm.write(f"{point.name} failed, {self.failed[point.name]}", file=sys.stderr)

    def _announce(self, point: GridPoint, how: str) -> None:
        self.announced.add(point.name)
        results = read_results(self.workdir / point.name)
        tqdm.write(f"[{len(self.announced)}/{len(self.points)}] {point.name}: {last_line(results)}, {how}")

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
