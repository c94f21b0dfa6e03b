"""Print the tables of docs/paper.md, docs/recipes.md, docs/results.md and docs/training_dct_networks.md.

    python -m experiments.tables

The figures are in results/. The script runs in a checkout of the project.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dctps_jax.reports.costs import operations_of_a_step
from dctps_jax.reports.records import Record, read_all, read_records
from dctps_jax.reports.settings import method_name
from experiments.start_figures import name_of
from experiments.trial_figures import read, spread, table

RESULTS = Path(__file__).parents[1] / "results"


def methods() -> str:
    """Return the table of methods on LeNet-5: accuracy of the last epoch, operations of a step, bytes."""
    found: dict[tuple[float, str], dict[str | None, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in read_all(
        RESULTS / name / "runs.jsonl" for name in ("lenet_cifar10_density", "lenet_cifar10_methods")
    ):
        density, offset = record.config["pruning.density"], record.config["model.offset"]
        if density in (0.1, 0.01) and record.results:
            found[density, method_name(record.setting)][offset].append(record)
    rows = [
        "| weights | method | DCT offset, test accuracy | no offset | seeds | DCT, operations of a step | none | "
        "bytes stored | bytes sent a step |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (density, method), offsets in sorted(found.items(), key=lambda item: (-item[0][0], item[0][1])):
        dct, none = offsets["dct"], offsets[None]
        accuracies = [_last_epoch(members) for members in (dct, none)]
        operations = [_operations(members) for members in (dct, none)]
        storage = (dct[0].results or {})["storage_bytes"]
        stored, sent = (storage[what]["this"] for what in ("checkpoint", "gradients"))
        rows.append(
            f"| {100 * density:g} % | {method} | {' | '.join(accuracies)} | {len(dct)} | {' | '.join(operations)} | "
            f"{stored:,} | {sent:,} |"
        )
    return "\n".join(rows)


def original() -> str:
    """Return the table of LeNet-5 by the original's code and by this package: the last epoch, in per cent."""
    theirs = json.loads((RESULTS / "lenet_cifar10_original" / "runs.json").read_text())["runs"]
    ours = read_records(RESULTS / "lenet_cifar10_density" / "runs.jsonl")
    rows = [
        "| weights | DCT offset, original | this package | no offset, original | this package |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for density in sorted({run["density"] for run in theirs}, reverse=True):
        cells = []
        for offset in ("dct", None):
            found = [
                run["test_accuracy_final"] for run in theirs if (run["offset"], run["density"]) == (offset, density)
            ]
            cells.append(", ".join(f"{100 * value:.1f}" for value in found))
            settings = (offset, density)
            chosen = [
                record.results["test_accuracy_final"]
                for record in ours
                if record.results and (record.config["model.offset"], record.config["pruning.density"]) == settings
            ]
            cells.append(spread(chosen))
        rows.append(f"| {100 * density:g} % | {' | '.join(cells)} |")
    return "\n".join(rows)


def comparison() -> str:
    """Return the table of methods on LeNet-5 after 60 epochs: accuracy of the last, and operations of a step at 1 %."""
    found: dict[tuple[str, float, str | None], list[Record]] = defaultdict(list)
    for record in read_records(RESULTS / "lenet_cifar10_comparison" / "runs.jsonl"):
        if record.results:
            key = method_name(record.setting), record.config["pruning.density"], record.config["model.offset"]
            found[key].append(record)
    columns = [
        (density, offset) for density in sorted({key[1] for key in found}, reverse=True) for offset in ("dct", None)
    ]
    titles = [f"{100 * density:g} %, {'DCT offset' if offset else 'no offset'}" for density, offset in columns]
    rows = [
        f"| method | {' | '.join(titles)} | operations of a step, 1 % |",
        "| --- |" + " ---: |" * (len(columns) + 1),
    ]
    for method in sorted({key[0] for key in found}):
        cells = [found.get((method, *column), []) for column in columns]
        at_one_percent = [cell for cell, (density, _) in zip(cells, columns, strict=True) if density == 0.01]
        accuracies = [_last_epoch(cell) if cell else "" for cell in cells]
        operations = ", ".join(_operations(cell) for cell in at_one_percent if cell)
        rows.append(f"| {method} | {' | '.join(accuracies)} | {operations} |")
    return "\n".join(rows)


def _last_epoch(records: Iterable[Record]) -> str:
    return spread([record.results["test_accuracy_final"] for record in records if record.results])


def _operations(records: Sequence[Record]) -> str:
    operations = operations_of_a_step(records[0].config, records[0].results or {})
    return f"{operations.sparse / 1e6:.0f} M" if operations else ""


def schedules() -> str:
    """Return the table of learning rates, with averaged weights beside each: accuracy of the last epoch."""
    rows = ["| schedule | last epoch | averaged weights (0.999) |", "| --- | ---: | ---: |"]
    names = {"constant": "constant", "cosine": "cosine after 1 epoch of warm-up"}
    records = read_records(RESULTS / "lenet_cifar10_schedules" / "runs.jsonl")
    for schedule, name in names.items():
        found = [record.results for record in records if record.config["optimizer.schedule"] == schedule]
        cells = [
            spread([results[f"test_accuracy_{which}"] for results in found if results]) for which in ("final", "ema")
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def start() -> dict[str, Any]:
    return json.loads((RESULTS / "slow_start" / "start.json").read_text())


def loss_at_start() -> str:
    """Return the table of the losses before the first step, and of the images that are taken for class 0."""
    cases = {(name_of(case), case["offset"]): case for case in start()["at start"]}
    rows = [
        "| network | loss, DCT offset | no offset | taken for class 0, DCT offset | no offset |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name in dict.fromkeys(name for name, _ in cases):
        both = [cases[name, offset] for offset in ("dct", None)]
        losses, shares = ([case[what] for case in both] for what in ("loss", "class 0"))
        rows.append(
            f"| {name} | {losses[0]:.2f} | {losses[1]:.2f} | {100 * shares[0]:.0f} % | {100 * shares[1]:.0f} % |"
        )
    return "\n".join(rows)


def trials_of(name: str) -> str:
    """Return the table of the trials of a network."""
    return table(read(RESULTS / "slow_start" / f"{name}.jsonl"))


if __name__ == "__main__":
    print(original(), methods(), comparison(), schedules(), loss_at_start(), trials_of("lenet"), sep="\n\n")
