"""Print the tables of docs/paper.md and docs/training_dct_networks.md: ``python experiments/tables.py``.

The figures are in results/. Needs the package installed, or ``PYTHONPATH=.``.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments import trials
from experiments.start_figures import name_of

RESULTS = Path(__file__).parents[1] / "results"


def original() -> str:
    """Return the table of LeNet-5 by the original's code and by this package: the last epoch, in per cent."""
    theirs = json.loads((RESULTS / "lenet_cifar10_original" / "runs.json").read_text())["runs"]
    ours = [json.loads(line) for line in (RESULTS / "lenet_cifar10_density" / "runs.jsonl").read_text().splitlines()]
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
                run["results"]["test_accuracy_final"]
                for run in ours
                if (run["config"]["model.offset"], run["config"]["pruning.density"]) == settings
            ]
            cells.append(f"{100 * np.mean(chosen):.1f} ± {100 * np.std(chosen, ddof=1):.1f}")
        rows.append(f"| {100 * density:g} % | {' | '.join(cells)} |")
    return "\n".join(rows)


def start() -> dict[str, Any]:
    return json.loads((RESULTS / "slow_start" / "start.json").read_text())


def loss_at_start() -> str:
    """Return the table of the losses before the first step."""
    losses = {(name_of(case), case["offset"]): case["loss"] for case in start()["at start"]}
    rows = ["| network | DCT offset | no offset |", "| --- | ---: | ---: |"]
    for name in dict.fromkeys(name for name, _ in losses):
        rows.append(f"| {name} | {losses[name, 'dct']:.2f} | {losses[name, None]:.2f} |")
    return "\n".join(rows)


def trials_of(name: str) -> str:
    """Return the table of the trials of a network."""
    lines = (RESULTS / "slow_start" / f"{name}.jsonl").read_text().splitlines()
    return trials.table([json.loads(line) for line in lines])


if __name__ == "__main__":
    print(original(), loss_at_start(), trials_of("lenet"), sep="\n\n")
