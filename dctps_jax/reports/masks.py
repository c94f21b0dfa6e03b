"""Compare the masks of runs: ``python -m dctps_jax.reports.masks RUN [RUN …] [--output FILE]``.

Prints the density of each layer for every run and the overlap of their masks, and draws the densities.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dctps_jax.accounts.aligned import aligned
from dctps_jax.command import command
from dctps_jax.errors import UserError
from dctps_jax.pruning import load_run_masks
from dctps_jax.reports.figures import COLOURS, MARKERS, figure_files, label_of, new_figure, save_figure

Masks = Mapping[str, np.ndarray]


def jaccard(first: Masks, second: Masks) -> float:
    """Return the overlap of two networks' masks: weights kept by both ÷ by either (1 if neither keeps any)."""
    both = sum(int(np.count_nonzero(first[path] & second[path])) for path in first)
    either = sum(int(np.count_nonzero(first[path] | second[path])) for path in first)
    return both / either if either else 1.0


def density_table(runs: Mapping[str, Masks]) -> str:
    """Return one aligned line a layer with its density in each run, and the densities of the whole networks."""
    names = list(runs)
    rows = [["layer", *names]]
    for path in runs[names[0]]:
        rows.append([path, *(f"{100 * runs[name][path].mean():.3g} %" for name in names)])
    rows.append(["total", *(f"{100 * _total_density(runs[name]):.3g} %" for name in names)])
    return "\n".join(aligned(rows, left=1))


def overlap_table(runs: Mapping[str, Masks]) -> str:
    """Return the matrix of overlaps (:func:`jaccard`) between the runs."""
    names = list(runs)
    rows = [["overlap", *names]]
    rows += [[first, *(f"{jaccard(runs[first], runs[second]):.3f}" for second in names)] for first in names]
    return "\n".join(aligned(rows, left=1))


def draw_densities(runs: Mapping[str, Masks], output: Path) -> None:
    """Draw the density of each layer, a line a run, on a logarithmic axis; saved as ``.png`` and ``.svg``.

    A layer that keeps no weight has no place on such an axis; it is marked on the floor of the figure.
    """
    layers = list(next(iter(runs.values())))
    places = np.arange(len(layers))
    densities = {name: np.array([100 * masks[path].mean() for path in layers]) for name, masks in runs.items()}
    lowest = min((values[values > 0].min() for values in densities.values() if values.any()), default=1)
    floor = lowest / 3
    figure, (axes,) = new_figure(1, 1, width=max(6, 0.16 * len(layers) + 3), height=4.6 + 0.22 * len(runs))
    for number, (name, values) in enumerate(densities.items()):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        shown = np.where(values > 0, values, np.nan)
        axes.plot(places, shown, color=colour, marker=marker, markersize=4, linewidth=1.2, label=label_of(name))
        empty = places[values == 0]
        axes.plot(empty, np.full(len(empty), floor), color=colour, marker="x", linestyle="none")
    axes.set(yscale="log", ylabel="weights kept (%), × none", ylim=(floor / 1.5, 150))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xticks(places, list(map(label_of, layers)), rotation=90, fontsize=7 if len(layers) > 30 else 9)
    # One below the other: the names of a sweep's runs are long.
    figure.legend(frameon=False, loc="outside upper left", fontsize=8)
    save_figure(figure, output)


def load_runs(folders: list[Path]) -> dict[str, Masks]:
    """Return the masks of run directories by a short name; all must be of the same layers."""
    runs: dict[str, Masks] = {}
    folders = [folder.resolve() for folder in folders]
    for number, folder in enumerate(folders):
        masks = load_run_masks(folder)
        if not masks:
            raise UserError(f"{folder} trained a dense network; it has no masks to compare")
        first = next(iter(runs.values()), masks)
        if {path: mask.shape for path, mask in masks.items()} != {path: mask.shape for path, mask in first.items()}:
            raise UserError(f"{folder} has other layers than {folders[0]}; compare runs of one network")
        if folders.index(folder) != number:
            raise UserError(f"{folder} is named twice; name each run once")
        runs[folder.name if folder.name not in runs else str(folder)] = masks
    return runs


def _total_density(masks: Masks) -> float:
    return sum(mask.sum() for mask in masks.values()) / sum(mask.size for mask in masks.values())


@command("masks")
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="directories of runs")
    parser.add_argument("--output", type=Path, default=Path("masks.png"), help="figure to write, as .png and .svg")
    arguments = parser.parse_args()
    files = figure_files(arguments.output)
    runs = load_runs(arguments.runs)
    draw_densities(runs, arguments.output)
    print(density_table(runs))
    if len(runs) > 1:
        print(f"\n{overlap_table(runs)}")
    print(f"\nwritten: {', '.join(map(str, files))}")


if __name__ == "__main__":
    main()
