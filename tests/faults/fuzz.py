"""Damages every file that the program reads, and looks at how the program ends.

    python -m tests.faults.fuzz --many 10000 --seed 0       figures, and the name of each bad case
    python -m tests.faults.fuzz --case resume:flip:run/metrics.jsonl:0    one case again, with all that it printed

A case is an operation of `operations.py`, a way of damage of `damage.py`, a file, and a number that its random choices
hang on. It has to end right (as with the sound files) or be refused in one sentence that names a file or a field. All
else is bad: a traceback, a wrong number, work lost, a file that a refusal changed, foreign code that ran, a hang,
memory.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import re
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dctps_jax.command import sentence
from tests.faults import damage, operations
from tests.faults.material import Material, counterpart, label_of
from tests.faults.operations import OPERATIONS, Case
from tests.faults.programs import Hung, time_limit

GOOD = ("right", "refused")
BAD = ("traceback", "wrong", "lost", "unclear", "executed", "hung", "memory", "died")
MEMORY_KB = 1_500_000  # more than any case needs
MAX_MESSAGE = 600
CASES_PER_LINE = 200  # a line of progress after so many
# How many cases of each operation there are, of a hundred or so: the costly ones come less often.
SHARES = {
    "resume": 4,
    "predict": 6,
    "report": 2,
    "report_of_records": 2,
    "curves": 2,
    "masks": 2,
    "restore": 10,
    "again": 12,
}
DEFAULT_SHARE = 6


class Outcome(NamedTuple):
    """How a case ended, and what the program said."""

    case: str
    content: str
    word: str
    note: str


class Fuzz:
    """Cases on the material below `folder`, which is made where it is missing."""

    def __init__(self, folder: Path):
        self.material = Material(folder)
        self.expected: dict[str, operations.Value] = {}
        self.targets: dict[str, list[tuple[str, str, Path]]] = {}
        self.gs = folder / "programs/gs"
        self.gs.parent.mkdir(parents=True, exist_ok=True)
        self.gs.write_text(
            f'#!/bin/sh\n[ "$1" = --version ] && echo 10.0 && exit\ntouch {folder / "gs_was_started"}\nexit 1\n'
        )
        self.gs.chmod(0o755)
        self.gs_mark = folder / "gs_was_started"
        self.tripped = False

    def names(self, operation: str, seed: int) -> Iterator[str]:
        """Yield the names of the cases of an operation: all files and ways of damage in random order, endless."""
        pairs: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for label, content, path in self._targets(operation):
            pairs[content] += [(kind, label) for kind, way in damage.KINDS.items() if way.applies(path)]

        def endless(content: str) -> Iterator[str]:
            for number in itertools.count(seed):
                mixed = random.Random(f"{operation} {content} {number}").sample(pairs[content], len(pairs[content]))
                yield from (f"{operation}:{kind}:{label}:{number}" for kind, label in mixed)

        every = [endless(content) for content in pairs]
        while True:  # each content in turn
            yield from map(next, every)

    def run(self, name: str) -> Outcome | None:
        """Do one case; None where the damage would change nothing."""
        operation, kind, label, _ = name.split(":")
        content, sound = next((content, path) for found, content, path in self._targets(operation) if found == label)
        expected = self._expected(operation)
        sandbox = self.material.lay_out(OPERATIONS[operation].parts)
        place, inside = sound.relative_to(self.material.sound), sandbox
        part = next(part for part, tree in OPERATIONS[operation].parts.items() if place.parts[0] == tree)
        inside = sandbox / part / Path(*place.parts[1:])
        tree = place.parts[0]
        foreign_tree = {"stopped": "finished"}.get(tree, tree)
        other = counterpart(sound, self.material.sound / tree, self.material.foreign / foreign_tree, name)
        try:
            damage.KINDS[kind].act(random.Random(name), inside, other)
        except damage.Pointless:
            return None
        word, note = self._outcome(operation, Case(inside.relative_to(sandbox), kind), expected, sandbox)
        return Outcome(name, content, word, note.replace(str(sandbox), ""))

    def _outcome(self, operation: str, case: Case, expected: operations.Value, sandbox: Path) -> tuple[str, str]:
        act = OPERATIONS[operation]
        before, memory = _snapshot(sandbox), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found, refused = {}, None
        try:
            with time_limit(sandbox), self._guarded():
                found = act.go(self.material, sandbox)
        except operations.Crashed as crash:
            return "traceback", str(crash)
        except operations.Refused as refusal:
            refused = "\n".join(refusal.lines)
        except Hung:
            return "hung", "nothing within the time allowed"
        except Exception as error:  # what the programs would make of it
            ending = sentence(error)
            if ending is None:
                return "traceback", traceback.format_exc()
            refused = ending[0]
        if self.tripped:
            self.tripped = False
            return "executed", "what the file names was run"
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
        if grown > MEMORY_KB:
            return "memory", f"{grown / 1e6:.1f} GB"
        if refused is not None:
            lost = _lost(before, sandbox, case)
            if lost:
                return "lost", f"{lost} | {refused}"
            return ("refused", refused) if _is_clear(refused, sandbox, case) else ("unclear", refused or "no word")
        different = act.allowed(case, found, expected)
        if different:
            return "wrong", f"{different} | {_shortened(found)}"
        lost = _lost(before, sandbox, case, finished=operation == "resume")
        return ("lost", lost) if lost else ("right", str(found.get("stderr", "")))

    def _targets(self, operation: str) -> list[tuple[str, str, Path]]:
        """(label, name in the figures, path among the sound files) of what can be damaged."""
        if operation not in self.targets:
            self.material.provide(OPERATIONS[operation].parts.values())
            found: dict[Path, tuple[str, str, Path]] = {}
            for part, tree in OPERATIONS[operation].parts.items():
                root = self.material.sound / tree
                for pattern, content in OPERATIONS[operation].targets.items():
                    head, _, rest = pattern.partition("/")
                    if head == part:
                        for path in sorted(root.glob(rest)) if rest else [root]:
                            label = os.path.normpath(os.path.join(part, label_of(path, root)))
                            found.setdefault(path, (label, content, path))
            self.targets[operation] = list(found.values())
        return self.targets[operation]

    def _expected(self, operation: str) -> operations.Value:
        if operation not in self.expected:
            sandbox = self.material.lay_out(OPERATIONS[operation].parts)
            self.expected[operation] = OPERATIONS[operation].go(self.material, sandbox)
            if operation == "restore":
                self.expected[operation] = {"known": operations.known_checkpoints(self.material, sandbox)}
        return self.expected[operation]

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Notice foreign code: a module that only a damaged file names, and Ghostscript."""
        path = os.environ["PATH"]
        os.environ["PATH"] = f"{self.gs.parent}{os.pathsep}{path}"
        try:
            yield
        finally:
            os.environ["PATH"] = path
            module = sys.modules.pop(damage.TRIPWIRE, None)
            self.tripped = module is not None or self.gs_mark.exists()
            self.gs_mark.unlink(missing_ok=True)


def _shortened(value: operations.Value) -> str:
    return ", ".join(f"{name}={str(member)[:150]!r}" for name, member in value.items())


def _is_clear(message: str, sandbox: Path, case: Case) -> bool:
    """One sentence that names a file or a field, for people to read."""
    names = str(sandbox) in message or case.path.name in message or re.search(r"--\w+|config\.\w+|data\.\w+", message)
    foreign = re.search(r"\n|File \"| object at 0x|Error\(", message)
    return bool(names) and not foreign and len(message) < MAX_MESSAGE


def _snapshot(sandbox: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sandbox.rglob("*"):
        name = str(path.relative_to(sandbox))
        if path.is_symlink():
            found[name] = "link"
        elif path.is_file():
            found[name] = (path.stat().st_size, zlib.crc32(path.read_bytes()))
    return found


def _lost(before: dict[str, Any], sandbox: Path, case: Case, finished: bool = False) -> str:
    """Name a sound file that is gone or changed, or what was left lying about; "" where there is none."""
    damaged, after = str(case.path), _snapshot(sandbox)
    kept = {(content, Path(name).name) for name, content in after.items()}
    for name, content in before.items():
        if name == damaged or name.startswith(f"{damaged}/") or name.endswith(".lock") or after.get(name) == content:
            continue
        if name.startswith(("cache/", "data/.dctps_cache")):
            continue  # decoded copies are made again
        passes_for_another = case.kind in ("copied_step", "renamed_step")
        is_of_damaged = "/checkpoints/" in name and (passes_for_another or _step_of(name) == _step_of(damaged))
        if is_of_damaged and (finished or (content, Path(name).name) in kept):
            continue  # a damaged checkpoint is set aside as a whole; nothing of it is deleted
        if finished and name.startswith("run/"):
            # A run that goes on writes anew, but sets nothing aside that is sound.
            is_only_one = list(before.values()).count(content) == 1
            aside = [other for other, found in after.items() if "/damaged/" in other and found == content]
            if aside and is_only_one and _step_of(name) != _step_of(damaged):
                return f"{name} is set aside as {aside[0]}"
            continue
        return f"{name} is {'changed' if name in after else 'gone'}"
    litter = [
        name
        for name in after.keys() - before.keys()
        if re.search(r"(^|/)\.[^/]*\.(tmp|[a-z0-9_]{8})$|orbax-checkpoint-tmp|/\.[^/]*tmp", name)
    ]
    return f"{min(litter)} is left lying about" if litter else ""


def _step_of(name: str) -> tuple[str, ...]:
    """The part of a path that names a checkpoint: latest/4."""
    parts = Path(name).parts
    return parts[parts.index("checkpoints") + 1 :][:2] if "checkpoints" in parts else ()


def shares(count: int, wanted: Sequence[str]) -> dict[str, int]:
    """How many of `count` cases each operation gets."""
    total = sum(SHARES.get(name, DEFAULT_SHARE) for name in wanted)
    return {name: max(1, round(count * SHARES.get(name, DEFAULT_SHARE) / total)) for name in wanted}


def run_cases(fuzz: Fuzz, operation: str, count: int, seed: int) -> Iterator[Outcome]:
    """Do `count` cases of an operation, at most twice that many where damages come to nothing."""
    names = fuzz.names(operation, seed)
    done = 0
    for _ in range(2 * count):
        outcome = fuzz.run(next(names))
        if outcome is not None:
            yield outcome
            done += 1
        if done == count:
            return


def check(fuzz: Fuzz, operation: str, count: int, seed: int = 0) -> None:
    """Do cases of an operation, as a test; all the bad ones are named."""
    outcomes = list(run_cases(fuzz, operation, count, seed))
    bad = [f"{outcome.word}: {outcome.case}\n{outcome.note}" for outcome in outcomes if outcome.word in BAD]
    assert outcomes and not bad, "\n".join(bad)


def table(outcomes: Sequence[Outcome]) -> str:
    """Cases by what was damaged and how they ended."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in outcomes:
        counts[outcome.content][outcome.word] += 1
        counts["total"][outcome.word] += 1
    words = [word for word in (*GOOD, *BAD) if word in GOOD or counts["total"][word]]
    rows = [["damaged", "cases", *words]]
    rows += [
        [content, str(sum(counts[content].values())), *(str(counts[content][word]) for word in words)]
        for content in [*sorted(counts.keys() - {"total"}), "total"]
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def work(folder: Path, wanted: Sequence[str], count: int, seed: int, skip: set[str]) -> None:
    """In a process of its own: print each case before it begins, and how it ended, as lines of JSON."""
    fuzz = Fuzz(folder)
    for operation, number in shares(count, wanted).items():
        names, done = fuzz.names(operation, seed), 0
        for _ in range(2 * number):
            name = next(names)
            if name in skip:
                done += 1
            else:
                print(json.dumps({"begin": name}), flush=True)
                outcome = fuzz.run(name)
                print(json.dumps({"end": outcome and outcome._asdict()}), flush=True)
                done += outcome is not None
            if done >= number:
                break


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--many", type=int, default=1000, help="how many cases")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other cases")
    parser.add_argument("--only", nargs="+", choices=OPERATIONS, default=list(OPERATIONS), help="operations")
    parser.add_argument("--case", help="one case, by its name")
    parser.add_argument("--material", type=Path, help="folder for the sound files; kept, and used again")
    parser.add_argument("--bad", type=Path, help="file that each bad case is added to, as a line of JSON")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--skip", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        skip = set(arguments.skip.read_text().splitlines()) if arguments.skip else set()
        work(arguments.work, arguments.only, arguments.many, arguments.seed, skip)
        return
    folder = arguments.material or Path(tempfile.mkdtemp(prefix="dctps_faults"))
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    try:
        if arguments.case:
            outcome = Fuzz(folder).run(arguments.case)
            print(outcome.word if outcome else "the damage changes nothing", outcome.note if outcome else "", sep="\n")
            sys.exit(outcome is not None and outcome.word in BAD)
        started = time.monotonic()
        outcomes = []
        for outcome in _watched(folder, arguments):
            outcomes.append(outcome)
            if outcome.word in BAD:
                last_line = (outcome.note.strip().splitlines() or [""])[-1]
                print(f"{outcome.word}: {outcome.case}\n    {last_line[:300]}", flush=True)
                if arguments.bad:
                    with arguments.bad.open("a") as file:
                        file.write(json.dumps(outcome._asdict()) + "\n")
            if len(outcomes) % CASES_PER_LINE == 0:
                print(_summary(outcomes, started, arguments.seed), flush=True)
        print(table(outcomes))
        print(_summary(outcomes, started, arguments.seed))
        sys.exit(any(outcome.word in BAD for outcome in outcomes))
    finally:
        if not arguments.material:
            shutil.rmtree(folder, ignore_errors=True)


def _summary(outcomes: Sequence[Outcome], started: float, seed: int) -> str:
    bad = sum(outcome.word in BAD for outcome in outcomes)
    return f"{len(outcomes)} cases, {bad} of them bad, {time.monotonic() - started:.0f} s, seed {seed}"


def _watched(folder: Path, arguments: argparse.Namespace) -> Iterator[Outcome]:
    """Have processes do the cases. Where a process dies, or hangs where no signal reaches it, its case is bad, and the
    next process goes on."""
    done: set[str] = set()
    while True:
        skip = folder / "skip.txt"
        folder.mkdir(exist_ok=True)
        skip.write_text("\n".join(done))
        command = [sys.executable, "-m", "tests.faults.fuzz", "--work", str(folder), "--many", str(arguments.many)]
        command += ["--seed", str(arguments.seed), "--skip", str(skip), "--only", *arguments.only]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1)
        assert process.stdout is not None
        begun = None
        while True:
            if not select.select([process.stdout], [], [], 300)[0]:
                process.kill()
            line = process.stdout.readline()
            if not line:
                break
            if not line.startswith('{"'):
                continue
            event = json.loads(line)
            if "begin" in event:
                begun = event["begin"]
            else:
                done.add(str(begun))
                begun = None
                if event["end"]:
                    yield Outcome(**event["end"])
        if process.wait() == 0:
            return
        if begun is None:
            raise SystemExit(f"the cases cannot be run: exit code {process.returncode}")
        done.add(begun)
        yield Outcome(begun, "died", "died", f"the process ended with {process.returncode}")


if __name__ == "__main__":
    main()
