"""Disturb a run of two processes at random moments until it is finished, and compare it with one undisturbed.

    python benchmarks/kills.py --kills 20 --signals 10 --save kills

Each disturbance sends SIGKILL or SIGTERM to the first process, to the second or to both, at a random moment after the
start. Then the same command resumes the run. If a run ends before all disturbances have come, another run begins. Needs
the package installed, or ``PYTHONPATH=.``.
"""

import argparse
import contextlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from record import describe_run, save

from dctps_jax.cli.launch import start_processes, wait_for_all
from dctps_jax.runs.checkpoint_files import read_checkpoint

OPTIONS = (
    "--config=configs/lenet_digits.py",
    "--config.num_epochs=4",
    "--config.pruning.density=0.05",
    "--config.optimizer.learning_rate=0.001",
    "--config.checkpoint_every_steps=3",
    "--config.tensorboard=False",
)


class Disturbance(NamedTuple):
    """A signal, and the processes that get it."""

    number: signal.Signals
    processes: tuple[int, ...]


class Ended(NamedTuple):
    """How the processes of a start ended: codes, last lines, and seconds since the disturbance."""

    codes: list[int]
    lines: list[str]
    seconds: float


def start_once(workdir: Path, disturbance: Disturbance | None, after: float, in_training: bool) -> Ended:
    """Start the run in ``workdir`` and disturb it after ``after`` seconds.

    ``in_training`` counts them from the line that says that the programs are compiled, not from the start.
    """
    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.NamedTemporaryFile("w+")) for _ in range(2)]
        processes = start_processes(outputs, 2, (*OPTIONS, f"--workdir={workdir}"))
        started = time.monotonic()
        if disturbance is not None:
            while in_training and "device(s), compiled in" not in Path(outputs[0].name).read_text():
                if all(process.poll() is not None for process in processes):
                    break
                time.sleep(0.05)
            with contextlib.suppress(subprocess.TimeoutExpired):
                processes[0].wait(after)
            for index in disturbance.processes:
                processes[index].send_signal(disturbance.number)
            started = time.monotonic()
        codes = wait_for_all(processes)
        lines = [(Path(output.name).read_text().splitlines() or [""])[-1] for output in outputs]
    return Ended(codes, lines, time.monotonic() - started)


def is_right(ended: Ended, disturbance: Disturbance, workdir: Path) -> bool:
    """Return whether all processes that were not killed left with the same code, and with one that fits.

    The code after SIGKILL is 69, or 143 if a process still waited for the killed one to join. The code after SIGTERM is
    143, or SIGTERM itself in the first and last moments of Python. The code is 0 if the run ended before. SIGTERM may
    then meet one process that is ending and another one that has ended.
    """
    codes = [143 if code == -signal.SIGTERM else code for code in ended.codes]
    left = {code for code in codes if code != -signal.SIGKILL}
    fitting = (143,) if disturbance.number == signal.SIGTERM else (69, 143)
    was_killed = codes.count(-signal.SIGKILL)
    most_killed = len(disturbance.processes) if disturbance.number == signal.SIGKILL else 0
    has_ended = disturbance.number == signal.SIGTERM and (workdir / "results.json").exists()
    return (len(left) <= 1 or has_ended) and left <= {0, *fitting} and was_killed <= most_killed


def content(workdir: Path) -> tuple[Any, ...]:
    """Return what has to be equal: the arrays of the last checkpoint, and the rows without their speeds."""
    newest = max(int(entry.name) for entry in (workdir / "checkpoints" / "latest").iterdir())
    arrays = read_checkpoint(workdir / "checkpoints" / "latest" / str(newest)).arrays
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rows = [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]
    return newest, {name: array.tobytes() for name, array in arrays.items()}, rows


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    choose = random.Random(arguments.seed)
    undisturbed = start_once(folder / "plain", None, 0, False)
    assert undisturbed.codes == [0, 0], undisturbed
    expected = content(folder / "plain")
    numbers = [signal.SIGKILL] * arguments.kills + [signal.SIGTERM] * arguments.signals
    choose.shuffle(numbers)
    seconds: dict[str, list[float]] = {"SIGKILL": [], "SIGTERM": []}
    codes: Counter[str] = Counter()
    equal, wrong, runs = 0, [], 0
    while numbers:
        runs += 1
        workdir = folder / f"run_{runs}"
        while not (workdir / "results.json").exists():
            if not numbers:
                assert start_once(workdir, None, 0, False).codes == [0, 0]
                continue
            disturbance = Disturbance(numbers.pop(), choose.choice([(0,), (1,), (0, 1)]))
            in_training = choose.random() < 0.7
            after = choose.uniform(0, 6 if in_training else 12)
            ended = start_once(workdir, disturbance, after, in_training)
            seconds[disturbance.number.name].append(ended.seconds)
            codes[f"{disturbance.number.name} {ended.codes}"] += 1
            if not is_right(ended, disturbance, workdir):
                wrong.append(f"{disturbance} after {after:.1f} s: {ended}")
            print(f"{disturbance.number.name} to {disturbance.processes}: {ended}", flush=True)
        is_equal = content(workdir) == expected
        equal += is_equal
        print(f"run {runs} is {'equal' if is_equal else 'NOT EQUAL'}", flush=True)
    return {
        "kills": arguments.kills,
        "signals": arguments.signals,
        "runs": runs,
        "runs_equal_bit_for_bit": equal,
        "ends_by_signal_and_codes": dict(sorted(codes.items())),
        "longest_seconds_to_leave": {name: max(found, default=None) for name, found in seconds.items()},
        "wrong_ends": wrong,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--signals", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", default="", help="name of a file in benchmarks/results/")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments, Path(folder))
    print(json.dumps(result, indent=1))
    save(arguments.save, describe_run(arguments) | result)
    if result["wrong_ends"] or result["runs_equal_bit_for_bit"] < result["runs"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
