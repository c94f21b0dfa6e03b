"""Compare the masks of runs: ``python -m dctps_jax.reports.masks RUN [RUN …] [--output FILE]``.

Prints the density of each layer for every run and the overlap of their masks, and draws the densities.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dctps_jax.accounts.aligned import aligned
from dctps_jax.command import command
from dctps_jax.errors import UserError
from dctps_jax.field import flat_fields
from dctps_jax.pruning import load_masks, load_run_masks
from dctps_jax.reports.figures import COLOURS, MARKERS, add_legend, figure_files, label_of, new_figure, save_figure
from dctps_jax.reports.records import title_of
from dctps_jax.runs.workdir import read_config

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


def draw_densities(runs: Mapping[str, Masks], output: Path | str, title: str = "") -> None:
    """Draw the density of each layer, a line a run, on a logarithmic axis; saved as ``.png`` and ``.svg``.

    A layer that keeps no weight has no place on such an axis; it is marked on the floor of the figure.
    """
    layers = list(next(iter(runs.values())))
    places = np.arange(len(layers))
    densities = {name: np.array([100 * masks[path].mean() for path in layers]) for name, masks in runs.items()}
    lowest = min((values[values > 0].min() for values in densities.values() if values.any()), default=1)
    floor = lowest / 3
    figure, (axes,) = new_figure(1, 1, width=max(5, 0.16 * len(layers) + 2), height=4.4, title=title)
    entries = {}
    for number, (name, values) in enumerate(densities.items()):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        shown = np.where(values > 0, values, np.nan)
        look = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1.2}
        (entries[label_of(name)],) = axes.plot(places, shown, **look)
        empty = places[values == 0]
        axes.plot(empty, np.full(len(empty), floor), color=colour, marker="x", linestyle="none")
    axes.set(yscale="log", ylabel="weights trained (%), × none", ylim=(floor / 1.5, 150))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xticks(places, list(map(label_of, layers)), rotation=90, fontsize=7 if len(layers) > 30 else 9)
    add_legend(figure, entries)
    save_figure(figure, Path(output))


def load_runs(sources: Sequence[Path]) -> dict[str, Masks]:
    """Return the masks of runs by a short name; all must be of the same layers.

    A source is the directory of a run, one of several runs, such as its seeds, or a file of masks.
    """
    runs: dict[str, Masks] = {}
    places: list[Path] = []
    for source in map(Path.resolve, sources):
        below = [source] if source.is_file() or (source / "masks.npz").exists() else _runs_below(source)
        for place in below or [source]:
            masks = load_masks(place) if place.is_file() else load_run_masks(place)
            if not masks and place != source:
                continue  # of several runs, dense ones have no masks to compare
            if not masks:
                raise UserError(f"{place} trained a dense network; it has no masks to compare")
            first = next(iter(runs.values()), masks)
            if {path: mask.shape for path, mask in masks.items()} != {path: mask.shape for path, mask in first.items()}:
                raise UserError(f"{place} has other layers than {places[0]}; compare runs of one network")
            if place in places:
                raise UserError(f"{place} is named twice; name each run once")
            places.append(place)
            name = str(place.relative_to(source.parent.parent if place.is_file() else source.parent))
            runs[name if name not in runs else str(place)] = masks
    if not runs:
        raise UserError(f"{sources[0]} holds dense networks only; they have no masks to compare")
    return runs


def _runs_below(folder: Path) -> list[Path]:
    return sorted(file.parent for file in folder.rglob("masks.npz") if file.parent.name != "damaged")


def _title(sources: Sequence[Path]) -> str:
    """Return networks and data sets of the runs, as far as their configs are there."""
    files = [
        file for source in sources for file in (source.parent if source.is_file() else source).rglob("config.json")
    ]
    return title_of(dict(flat_fields(read_config(file.parent))) for file in files) if files else ""


def _total_density(masks: Masks) -> float:
    return sum(mask.sum() for mask in masks.values()) / sum(mask.size for mask in masks.values())


@command("masks")
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "runs", nargs="+", type=Path, help="directories of runs, or files such as RUN/masks_initial.npz"
    )
    parser.add_argument("--output", type=Path, default=Path("masks.png"), help="figure to write, as .png and .svg")
    arguments = parser.parse_args()
    files = figure_files(arguments.output)
    runs = load_runs(arguments.runs)
    draw_densities(runs, arguments.output, _title(arguments.runs))
    print(density_table(runs))
    if len(runs) > 1:
        print(f"\n{overlap_table(runs)}")
    print(f"\nwritten: {', '.join(map(str, files))}")


if __name__ == "__main__":
    main()
