"""Compare the masks of runs: ``python -m dctps_jax.reports.masks RUN [RUN …] [--output FILE]``.

The script prints the density of each layer for every run and the overlaps of the runs' masks. It draws, by layer, the
densities and the overlap of each mask with the mask of the first run.
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dctps_jax.aligned import aligned
from dctps_jax.command import command
from dctps_jax.errors import UserError
from dctps_jax.field import flat_fields
from dctps_jax.pruning import load_masks, load_run_masks
from dctps_jax.reports.figures import (
    COLOURS,
    HEADROOM,
    MARKERS,
    add_legend,
    figure_files,
    label_of,
    look_of,
    new_figure,
    save_figure,
)
from dctps_jax.reports.names import names_of_places
from dctps_jax.reports.settings import title_of
from dctps_jax.runs.damage import DAMAGED
from dctps_jax.runs.workdir import read_config

logger = logging.getLogger("dctps_jax")

Masks = Mapping[str, np.ndarray]

MOST_COLUMNS_WITH_NAMES = 4
CROSS = {"color": "0.4", "marker": "x", "linestyle": "none"}


def jaccard(first: Masks, second: Masks) -> float:
    """Return the overlap of two networks' masks: weights kept by both ÷ by either (1 if neither keeps any)."""
    both = sum(int(np.count_nonzero(first[path] & second[path])) for path in first)
    either = sum(int(np.count_nonzero(first[path] | second[path])) for path in first)
    return both / either if either else 1.0


def layer_overlaps(first: Masks, second: Masks) -> np.ndarray:
    """Return the overlap of each layer's masks, NaN for a layer in which neither run keeps a weight."""
    is_kept = (first[path].any() or second[path].any() for path in first)
    overlaps = (jaccard({path: first[path]}, {path: second[path]}) for path in first)
    return np.array([overlap if kept else np.nan for overlap, kept in zip(overlaps, is_kept, strict=True)])


def density_table(runs: Mapping[str, Masks]) -> str:
    """Return the densities of each layer and of the whole network; runs are columns, or lines if they are many."""
    layers = list(next(iter(runs.values())))
    are_lines = len(runs) > len(layers)
    columns = [["run" if are_lines else "layer", *layers, "total"]]
    for name, masks in runs.items():
        densities = [*(float(masks[path].mean()) for path in layers), _total_density(masks)]
        columns.append([name, *(f"{100 * density:.3g} %" for density in densities)])
    return "\n".join(aligned(columns if are_lines else list(zip(*columns, strict=True)), left=1))


def overlap_table(runs: Mapping[str, Masks]) -> str:
    """Return the matrix of overlaps (:func:`jaccard`) between the runs, whose columns have numbers if they are many."""
    names = list(runs)
    are_many = len(names) > MOST_COLUMNS_WITH_NAMES
    rows = [["overlap", *(map(str, range(1, len(names) + 1)) if are_many else names)]]
    for number, first in enumerate(names, 1):
        overlaps = (f"{jaccard(runs[first], runs[second]):.3f}" for second in names)
        rows.append([f"{number}  {first}" if are_many else first, *overlaps])
    return "\n".join(aligned(rows, left=1))


def draw_masks(runs: Mapping[str, Masks], output: Path | str, title: str = "") -> None:
    """Draw the density of each layer, a line a run, and the overlap of its mask with the mask of the first run.

    The figure is saved as ``.png`` and ``.svg``. Equal runs can be told apart: each has its own place beside the
    layer's, its own marker and dashes. Densities have a logarithmic axis. A layer that keeps no weight has no place
    there; it is marked below the others. A warning goes to the log if there are more runs than looks.
    """
    num_looks = len(COLOURS) * len(MARKERS)
    if len(runs) > num_looks:
        logger.warning("the figure has %d runs, and %d looks to tell them apart; give fewer runs", len(runs), num_looks)
    names, layers = list(runs), list(next(iter(runs.values())))
    places, step = np.arange(len(layers)), min(0.1, 0.5 / len(runs))
    densities = {name: np.array([100 * masks[path].mean() for path in layers]) for name, masks in runs.items()}
    lowest = min((values[values > 0].min() for values in densities.values() if values.any()), default=1)
    floor = lowest / (3 if any((values == 0).any() for values in densities.values()) else 1)
    is_compared = len(runs) > 1
    size = {"width": max(5, 0.16 * len(layers) + 2), "height": 4.4 + 2.2 * is_compared}
    figure, (axes, *below) = new_figure(1 + is_compared, 1, title=title, sharex=True, sharey=False, **size)
    entries, empty = {}, False
    for number, (name, values) in enumerate(densities.items()):
        look = look_of(number) | {"markersize": 4, "linewidth": 1.2}
        beside = places + step * (number - (len(runs) - 1) / 2)
        (entries[label_of(name)],) = axes.plot(beside, np.where(values > 0, values, np.nan), **look)
        if (values == 0).any():
            empty = True
            axes.plot(beside[values == 0], np.full(sum(values == 0), floor), **CROSS | {"color": look["color"]})
        if number > 0:
            below[0].plot(beside, layer_overlaps(runs[names[0]], runs[name]), **look)
    if empty:
        (entries["no weight trained"],) = axes.plot([], [], **CROSS)
    axes.set(yscale="log", ylabel="weights trained (%)", ylim=(floor / 1.5, 150))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    if is_compared:
        below[0].set(ylabel="weights in both ÷ in either", ylim=(-HEADROOM, 1 + HEADROOM))
        below[0].set_title(f"overlap with {label_of(names[0])}", fontsize=10)
    lowest_axes = below[0] if is_compared else axes
    lowest_axes.set_xticks(places, list(map(label_of, layers)), rotation=90, fontsize=7 if len(layers) > 30 else 9)
    add_legend(figure, entries)
    save_figure(figure, Path(output))


def load_runs(sources: Sequence[Path]) -> dict[str, Masks]:
    """Return the masks of runs by a short name. All must have the same layers. Dense runs are left out with a warning.

    A source is the directory of a run, one of several runs, such as its seeds, or a file of masks.
    """
    runs: dict[Path, Masks] = {}
    for source in map(Path.resolve, sources):
        below = [source] if source.is_file() or (source / "masks.npz").exists() else _runs_below(source)
        for place in below or [source]:
            masks = load_masks(place) if place.is_file() else load_run_masks(place)
            if not masks:
                logger.warning("%s is left out: it trained a dense network, which has no masks", place)
                continue
            if place in runs:
                raise UserError(f"{place} is named twice; name each run once")
            runs[place] = masks
            _check_layers(runs, place)
    if not runs:
        raise UserError(
            f"there are no masks to compare: {', '.join(map(str, sources))} trained dense networks; name a sparse run"
        )
    return dict(zip(names_of_places(list(runs)), runs.values(), strict=True))


def _check_layers(runs: Mapping[Path, Masks], place: Path) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` unless the masks of a run are of the layers of the first one."""
    first, expected = next(iter(runs.items()))
    found = runs[place]
    for path in sorted(set(found) ^ set(expected)):
        has, lacks = (place, first) if path in found else (first, place)
        raise UserError(
            f"{place} has other layers than {first}: {path} is in {has} and not in {lacks}; compare runs of one network"
        )
    for path, mask in found.items():
        if mask.shape != expected[path].shape:
            there, here = ("×".join(map(str, shape)) for shape in (mask.shape, expected[path].shape))
            raise UserError(
                f"{place} has other layers than {first}: {path} is {there} there and {here} here; compare runs of one "
                "network"
            )


def _runs_below(folder: Path) -> list[Path]:
    return sorted(file.parent for file in folder.rglob("masks.npz") if file.parent.name != DAMAGED)


def _title(sources: Sequence[Path]) -> str:
    """Return networks and data sets of the runs, if their configs are there."""
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
    draw_masks(runs, arguments.output, _title(arguments.runs))
    print(density_table(runs))
    if len(runs) > 1:
        print(f"\n{overlap_table(runs)}")
    print(f"\nwritten: {', '.join(map(str, files))}")


if __name__ == "__main__":
    main()
