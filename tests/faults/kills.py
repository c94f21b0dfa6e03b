"""Kills and stops `train.py` at random moments, and compares what it leaves with a run that nothing disturbed.

    python -m tests.faults.kills                     20 kills, 20 Ctrl-C while compiling, 20 double Ctrl-C, 5 SIGTERM
    python -m tests.faults.kills --only sigterm --times 2 --seed 3

Prints a line for each try and a table. It takes about half an hour on two processors; the tests have one case of each
kind.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.small_runs import assert_same_end

REPO = Path(__file__).parents[2]
COMMON = ["--config", "configs/lenet_digits.py", "--config.data.augment=true", "--config.tensorboard=false"]
SMALL = [*COMMON, "--config.num_epochs=2", "--config.batch_size=64", "--config.checkpoint_every_steps=1"]
# Takes seconds to compile, and a part of a second a step.
SLOW = [
    *COMMON,
    "--config.model.name=resnet18",
    "--config.model.width=8",
    "--config.batch_size=256",
    "--config.num_epochs=30",
]
# A step of seconds.
WIDE = [
    *COMMON,
    "--config.model.name=resnet18",
    "--config.model.width=64",
    "--config.batch_size=256",
    "--config.num_epochs=30",
]
# The last line before the programs are compiled.
BEFORE_COMPILING = "checkpoint "
SIGTERM_SECONDS = 10


class Trial(NamedTuple):
    """One try: whether all was as it should be, how long the process took to end, and what was seen."""

    good: bool
    seconds: float
    note: str


class Process:
    """A `train.py` whose lines are read as they come."""

    def __init__(self, arguments: list[str], workdir: Path, cached: bool = True):
        environment = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONUNBUFFERED": "1"}
        environment |= {"JAX_ENABLE_COMPILATION_CACHE": str(cached).lower()}
        command = [sys.executable, "train.py", *arguments, "--workdir", str(workdir)]
        self.started = time.monotonic()
        self.popen = subprocess.Popen(
            command, cwd=REPO, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def wait_for(self, text: str) -> bool:
        """Read on until a line holds `text`; whether one did."""
        assert self.popen.stdout is not None
        return any(text in line for line in self.popen.stdout)

    def finish(self) -> tuple[int, str, str]:
        out, err = self.popen.communicate(timeout=900)
        return self.popen.returncode, out, err


def steps(workdir: Path) -> list[int]:
    """The checkpoints that are whole; a kill may leave half of one, under another name."""
    return sorted(int(entry.name) for entry in (workdir / "checkpoints/latest").glob("*") if entry.name.isdigit())


def same_end(workdir: Path, plain: Path) -> str:
    """Name how a finished run differs from the undisturbed one, "" where it does not."""
    try:
        assert_same_end(workdir, plain)
    except AssertionError as error:
        return f"{workdir} differs: {str(error).splitlines()[0] if str(error) else 'a row'}"
    return ""


def undisturbed(arguments: list[str], folder: Path) -> tuple[float, float]:
    """Make a run that nothing disturbs; return the seconds until its programs are there, and those that it trains."""
    begun = 0.0
    for name in ("compiled", "plain"):  # the second one finds the compiled programs, as those after it do
        process = Process(arguments, folder / name)
        assert process.wait_for("compiled in"), process.finish()
        begun = time.monotonic()
        code, out, err = process.finish()
        assert code == 0 and not err, (code, out, err)
    return begun - process.started, time.monotonic() - begun


def kills(folder: Path, choice: random.Random, times: int, show: Callable[[Trial], None]) -> None:
    """SIGKILL at a random moment, mostly of training, then the same command again, until it ends."""
    to_compile, to_train = undisturbed(SMALL, folder)

    def kill(process: Process, workdir: Path) -> Trial | None:
        if choice.random() < 0.2:
            moment, where = choice.uniform(0, to_compile), "the start"
        else:
            if not process.wait_for("compiled in"):
                return None
            moment, where = choice.uniform(0, to_train), "training"
        try:
            process.popen.wait(moment)
        except subprocess.TimeoutExpired:
            process.popen.kill()
            process.finish()
            saved = steps(workdir)
            return Trial(
                True, moment, f"killed {moment:.1f} s into {where}, saved: {saved[-1] if saved else 'nothing'}"
            )
        return None

    disturbed(SMALL, folder, times, kill, show)


def disturbed(
    arguments: list[str],
    folder: Path,
    times: int,
    disturb: Callable[[Process, Path], Trial | None],
    show: Callable[[Trial], None],
) -> None:
    """Disturb a run until it ends, and the next one, so many times in all; each has to end as `folder/plain` did.

    `disturb` returns None where the process ended first.
    """
    count, number = 0, 0
    while count < times:
        number += 1
        workdir, trials = folder / f"run{number}", list[Trial]()
        while count < times:
            process = Process(arguments, workdir)
            trial = disturb(process, workdir)
            if trial is None:
                break
            count += 1
            trials.append(trial)
        else:
            process = Process(arguments, workdir)
        code, _, err = process.finish()
        different = same_end(workdir, folder / "plain") if (code, err) == (0, "") else f"{code}: {err}"
        for trial in trials:
            note = f"{trial.note}; in the end {different or 'the same bits'}"
            show(Trial(trial.good and not different, trial.seconds, note))


def interrupts_while_compiling(folder: Path, choice: random.Random, times: int, show: Callable[[Trial], None]) -> None:
    """Ctrl-C while the programs are compiled: code 130 and one line, at once."""
    process = Process(SLOW, folder / "plain", cached=False)
    process.wait_for(BEFORE_COMPILING)
    began = time.monotonic()
    process.wait_for("compiled in")
    seconds = time.monotonic() - began
    process.popen.kill()
    process.finish()
    for number in range(times):
        workdir = folder / f"run{number}"
        process = Process(SLOW, workdir, cached=False)
        process.wait_for(BEFORE_COMPILING)
        moment = choice.uniform(0, 0.8 * seconds)
        time.sleep(moment)
        process.popen.send_signal(signal.SIGINT)
        sent = time.monotonic()
        code, out, err = process.finish()
        took = time.monotonic() - sent
        good = code == 130 and err.count("\n") == 1 and "compiled in" not in out and took < 5
        show(Trial(good, took, f"{moment:.1f} s into {seconds:.0f} s: code {code}, {err.strip()}"))


def double_interrupts(folder: Path, choice: random.Random, times: int, show: Callable[[Trial], None]) -> None:
    """Two Ctrl-C while a step is computed: saved, code 130; at the end the run is that which nothing disturbed."""
    undisturbed(SLOW, folder)

    def interrupt(process: Process, workdir: Path) -> Trial | None:
        if not process.wait_for("compiled in"):
            return None
        time.sleep(choice.uniform(0, 1))
        process.popen.send_signal(signal.SIGINT)
        sent = time.monotonic()
        time.sleep(choice.uniform(0, 0.3))
        process.popen.send_signal(signal.SIGINT)
        code, _, err = process.finish()
        took, saved = time.monotonic() - sent, steps(workdir)
        good = code == 130 and bool(saved) and f"saved at step {saved[-1]};" in err and "Traceback" not in err
        return Trial(good, took, f"code {code}, {(err.strip().splitlines() or [''])[-1]}")

    disturbed(SLOW, folder, times, interrupt, show)


def terminations(folder: Path, choice: random.Random, times: int, show: Callable[[Trial], None]) -> None:
    """SIGTERM while ResNet18 trains: saved and gone within 10 s of the end of the step under way."""
    arguments = [*WIDE, "--config.num_epochs=1", "--config.log_every_steps=1"]
    process = Process(arguments, folder / "measured")
    process.wait_for("compiled in")
    began = time.monotonic()
    process.wait_for("epoch 1/1")
    step_seconds = (time.monotonic() - began) / (1437 * 9 // 10 // 256)  # with the evaluation: at most so long
    process.finish()
    for number in range(times):
        process = Process(WIDE, folder / f"run{number}")
        process.wait_for("compiled in")
        time.sleep(choice.uniform(0.5, 3 * step_seconds))
        process.popen.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        code, _, err = process.finish()
        took, saved = time.monotonic() - sent, steps(folder / f"run{number}")
        good = (
            code == 143
            and bool(saved)
            and f"saved at step {saved[-1]};" in err
            and took < SIGTERM_SECONDS + step_seconds
        )
        show(Trial(good, took, f"code {code}, a step takes {step_seconds:.1f} s, {err.strip().splitlines()[-1]}"))


EXPERIMENTS = {
    "kill": (kills, 20),
    "compiling": (interrupts_while_compiling, 20),
    "double": (double_interrupts, 20),
    "sigterm": (terminations, 5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--times", type=int, help="how many tries of each, instead of 20, 20, 20 and 5")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    lines, all_good = [], True
    with tempfile.TemporaryDirectory(prefix="dctps_kills") as temporary:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(temporary) / "compiled_programs"))
        for name in arguments.only:
            experiment, times = EXPERIMENTS[name]
            folder, trials = Path(temporary) / name, []
            folder.mkdir()

            def show(trial: Trial, name: str = name, trials: list[Trial] = trials) -> None:
                trials.append(trial)
                print(
                    f"{name} {len(trials)}: {'good' if trial.good else 'BAD'}, {trial.seconds:.2f} s, {trial.note}",
                    flush=True,
                )

            experiment(folder, random.Random(f"{name} {arguments.seed}"), arguments.times or times, show)
            good = sum(trial.good for trial in trials)
            all_good &= good == len(trials)
            lines.append(
                f"{name:10} {good:3d} of {len(trials):3d} good, longest {max(trial.seconds for trial in trials):6.2f} s"
            )
    print("\n".join(lines))
    sys.exit(not all_good)


if __name__ == "__main__":
    main()
