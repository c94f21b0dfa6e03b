"""The table and the figure of ``experiments/trials.py``."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from dctps_jax.reports.figures import add_legend, look_of, new_figure, save_figure
from experiments.trials import TRIALS

# The table has the accuracy after this epoch, too.
EARLY = 3

# The trials that the figure shows.
DRAWN = (
    "as in the paper",
    "α starts at 0.5",
    "rate of S × 10",
    "no offset",
    "no offset, rate of S × 3",
    "Hadamard offset",
    "random orthogonal offset",
    "delta offset",
)

Lines = list[dict[str, Any]]


def spread(values: list[float]) -> str:
    """Return mean ± sample deviation, in per cent."""
    return f"{100 * np.mean(values):.1f}" + (f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def read(file: Path) -> Lines:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    if len({(line["network"], line["epochs"]) for line in lines}) > 1:
        raise SystemExit(f"{file} holds runs of several networks or numbers of epochs; give each a file of its own")
    return lines


def by_trial(lines: Lines) -> dict[tuple[str, float], Lines]:
    found: dict[tuple[str, float], Lines] = defaultdict(list)
    for line in lines:
        found[line["trial"], line["density"]].append(line)
    return found


def table(lines: Lines) -> str:
    """Return the table of the accuracies in per cent: mean ± sample deviation over the seeds."""
    found = by_trial(lines)
    densities = sorted({density for _, density in found}, reverse=True)
    last, early = f"epoch {lines[0]['epochs']}", min(EARLY, lines[0]["epochs"])
    titles = [f"{100 * density:g} %: epoch {early} | {last} | {last}, test | seeds" for density in densities]
    rows = ["| change | " + " | ".join(titles) + " |", "| --- |" + " ---: | ---: | ---: | ---: |" * len(densities)]
    for name in TRIALS:
        if not any((name, density) in found for density in densities):
            continue
        cells = []
        for density in densities:
            members = found.get((name, density), [])
            epochs = ([line["val_accuracy"][epoch] for line in members] for epoch in (early - 1, -1))
            columns = [*epochs, [line["test_accuracy"] for line in members]]
            cells += [*(spread(values) if values else "" for values in columns), str(len(members) or "")]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def draw(lines: Lines, output: Path) -> None:
    """Draw the validation accuracies by epoch of the runs with the first seed, a panel for each density."""
    found = by_trial([line for line in lines if line["seed"] == lines[0]["seed"]])
    densities = sorted({density for _, density in found}, reverse=True)
    title = f"{lines[0]['network']}, seed {lines[0]['seed']}"
    figure, all_axes = new_figure(1, len(densities), width=4.2 * len(densities), height=4, title=title)
    for axes, density in zip(all_axes, densities, strict=True):
        for number, name in enumerate(DRAWN):
            for line in found.get((name, density), []):
                values = [100 * value for value in line["val_accuracy"]]
                axes.plot(range(1, len(values) + 1), values, **look_of(number) | {"marker": None}, label=name)
        axes.set_title(f"{100 * density:g} % of the weights", fontsize=10)
        axes.set_xlabel("epoch")
    all_axes[0].set_ylabel("validation accuracy (%)")
    handles, labels = all_axes[0].get_legend_handles_labels()
    add_legend(figure, dict(zip(labels, handles, strict=True)))
    save_figure(figure, output)
