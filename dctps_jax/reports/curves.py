"""Draw the validation accuracy of runs by epoch: ``python -m dctps_jax.reports.curves RUN [RUN …] --output FILE``.

Runs that differ only in their seed share a line, the mean of the runs that have reached an epoch, and a band of one
standard deviation on both sides. Each method has a panel of its own, and the dense network is in all panels. Runs that
differ in many fields are labelled by their names, with a panel for each network and data set.
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dctps_jax.command import command
from dctps_jax.errors import UserError
from dctps_jax.reports.figures import (
    COLOURS,
    HEADROOM,
    add_legend,
    figure_files,
    kernel_name,
    label_of,
    look_of,
    new_figure,
    offset_line,
    save_figure,
    seeds_in_title,
)
from dctps_jax.reports.records import Record, by_setting, names_of_settings, read_all
from dctps_jax.reports.settings import MAX_FIELDS_IN_LABEL, Setting, differing, method_name, title_of, values_of

MAX_COLUMNS = 3
DENSE = "dense"  # the title of runs that train all weights and differ from the others in nothing else


def draw_curves(records: Sequence[Record], output: Path | str) -> None:
    """Draw one line for each setting among the runs and save it as ``output``, with ``.png`` and ``.svg``.

    The colour stands for the density and the line style for the offset; without offset the line is dashed. If all runs
    have one density, each offset also has its own colour. If more than :data:`MAX_FIELDS_IN_LABEL` fields differ, each
    line has its own look and the name of its run. Where lines lie on one another, the lower ones are thicker. Runs in
    their first epoch are left out with a warning. Raises :class:`~dctps_jax.errors.UserError` if no other run is left.
    """
    from matplotlib.ticker import MaxNLocator

    begun = [record for record in records if record.rows]
    if records and not begun:
        raise UserError(
            f"{records[0].name} has no rows in metrics.jsonl; give the directory of a run that has finished an epoch"
        )
    for record in records:
        if not record.rows:
            logging.getLogger("dctps_jax").warning("%s is left out: it has not finished an epoch", record.name)
    records = begun
    groups = by_setting(records)
    has_names = len(differing(list(groups))) > MAX_FIELDS_IN_LABEL
    titles = _networks(groups) if has_names else panel_titles(list(groups))
    panels = sorted(set(titles.values()) - {DENSE}) or [DENSE]
    densities = {setting: _density(members) for setting, members in groups.items()}
    looks = _looks_of_runs(groups, densities) if has_names else _looks_of_kernels(densities)
    columns = min(MAX_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    width, height = max(5.0, 3.8 * columns), 0.9 + 3.2 * rows
    title = title_of(record.config for record in records)
    if len(panels) == 1 and not has_names:
        title += f", {panels[0]}"
    title += seeds_in_title(map(len, groups.values()))
    figure, all_axes = new_figure(rows, columns, width=width, height=height, title=title)
    highest = 0.0
    by_density = sorted(groups.items(), key=lambda group: (-densities[group[0]], not dict(group[0])["model.offset"]))
    for number, (axes, panel) in enumerate(zip(all_axes, panels, strict=False)):
        for setting, members in by_density:
            if titles[setting] not in (panel, DENSE):
                continue
            values = np.full((len(members), max(len(record.rows) for record in members)), np.nan)
            for line, record in zip(values, members, strict=True):
                line[: len(record.rows)] = [100 * row["val_accuracy"] for row in record.rows]
            epochs = np.arange(1, values.shape[1] + 1)
            marker = looks[setting].get("marker", "o") if len(epochs) == 1 else None
            means, several = np.nanmean(values, 0), (~np.isnan(values)).sum(0) > 1
            axes.plot(epochs, means, **looks[setting] | {"marker": marker})
            if several.any():
                band = {"color": looks[setting]["color"], "alpha": 0.15, "linewidth": 0}
                means, deviations = means[several], np.nanstd(values[:, several], 0, ddof=1)
                axes.fill_between(epochs[several], means - deviations, means + deviations, **band)
                highest = max(highest, np.max(means + deviations))
            highest = max(highest, np.nanmax(values))
        axes.set(xlabel="epoch", ylabel="" if number % columns else "validation accuracy (%)")
        if len(panels) > 1:
            axes.set_title(panel, fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    all_axes[0].set_ylim(0, (1 + HEADROOM) * min(highest or 100, 100))  # shared by all
    handles = {
        label: handle for axes in all_axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    labels = [looks[setting]["label"] for setting, _ in by_density]
    for axes in all_axes[len(panels) :]:
        axes.remove()
    add_legend(figure, {label: handles[label] for label in labels}, None if has_names else "weights trained")
    save_figure(figure, Path(output))


def _looks_of_kernels(densities: Mapping[Setting, float]) -> dict[Setting, dict[str, Any]]:
    ranks, looks = sorted(set(densities.values()), reverse=True), {}
    thickness = dict(zip(ranks, np.linspace(2.2, 1.4, len(ranks)), strict=True))
    offsets = sorted({dict(setting)["model.offset"] for setting in densities}, key=lambda name: (name is None, name))
    for setting, density in densities.items():
        offset = dict(setting)["model.offset"]
        rank = ranks.index(density) if len(ranks) > 1 else offsets.index(offset)
        looks[setting] = {
            "color": COLOURS[rank % len(COLOURS)],
            "linestyle": offset_line(offset),
            "linewidth": thickness[density],
            "markerfacecolor": "white" if offset is None else None,
            "label": f"{100 * density:.3g} %, {kernel_name(offset, density == 1)}",
        }
    return looks


def _looks_of_runs(
    groups: Mapping[Setting, Sequence[Record]], densities: Mapping[Setting, float]
) -> dict[Setting, dict[str, Any]]:
    looks = {}
    thickness = np.linspace(4, 1, len(groups))
    for number, (setting, name) in enumerate(names_of_settings(groups).items()):
        kernel = kernel_name(dict(setting)["model.offset"], densities[setting] == 1)
        text = f"{name}: {100 * densities[setting]:.3g} %, {kernel}, {method_name(setting)}"
        looks[setting] = look_of(number) | {
            "label": label_of(text),
            "linewidth": thickness[number],
            "zorder": 2 + number,
        }
    return looks


def panel_titles(settings: Sequence[Setting]) -> dict[Setting, str]:
    """Name what differs between the settings besides density and offset."""
    fields = differing(settings)
    return {
        setting: label_of(
            ", ".join(
                [
                    method_name(setting),
                    *(f"{field}={value}" for field, value in values_of(setting, fields).items()),
                ]
            )
        )
        for setting in settings
    }


def _networks(groups: Mapping[Setting, Sequence[Record]]) -> dict[Setting, str]:
    """Return network and data set of each setting; only settings with the same are compared."""
    return {setting: label_of(title_of([members[0].config])) for setting, members in groups.items()}


def _density(members: Sequence[Record]) -> float:
    """Return the density that the runs of a setting were asked for.

    For masks of another run, it is the density that was kept.
    """
    first = members[0]
    takes_masks = first.config["pruning.method"] == "from_run"
    return first.results["density"] if takes_masks and first.results else first.config["pruning.density"]


@command("curves")
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="directories of runs, or of sweeps")
    parser.add_argument("--output", type=Path, default=Path("curves.png"), help="file to write, as .png and .svg")
    arguments = parser.parse_args()
    files = figure_files(arguments.output)
    draw_curves(read_all(arguments.runs), arguments.output)
    print(f"written: {', '.join(map(str, files))}")


if __name__ == "__main__":
    main()
