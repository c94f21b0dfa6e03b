"""The paper's figure: test accuracy of the last epoch against the share of weights that are trained."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dctps_jax.reports.figures import (
    COLOURS,
    MARKERS,
    add_legend,
    kernel_name,
    label_of,
    new_figure,
    offset_line,
    save_figure,
    seeds_in_title,
    within_percent,
)
from dctps_jax.reports.settings import MAX_FIELDS_IN_LABEL

MAX_TICKS = 10
QUANTITY = "test accuracy, last epoch (%)"
BASELINE = {"color": "0.45", "linewidth": 1.5, "zorder": 1}
BASELINE_STYLES = ("-", (0, (1, 1)), (0, (3, 1, 1, 1)))

Line = Mapping[str, Any]


def draw_accuracy(lines: Sequence[Line], output: Path, title: str) -> None:
    """Draw the accuracies of a report's ``lines``. Save the figure with ``.png`` and ``.svg``.

    The figure has lines over the density, one for each method and offset. If there are more methods than densities, it
    has a panel for each density with a row of dots for each method: short lines would only cross. Bars and bands show a
    standard deviation over seeds. The dense network without offset is a straight line.
    """
    sparse = [line for line in lines if not _is_baseline(line)]
    baselines = {
        _method(line): (line, BASELINE_STYLES[number % len(BASELINE_STYLES)])
        for number, line in enumerate(filter(_is_baseline, lines))
    }
    names = {line["method"] for line in lines} - {"dense"}
    if len(names) == 1:
        title += f", {names.pop()}"
    title += seeds_in_title(line["seeds"] for line in lines)
    num_methods, num_densities = len({_method(line) for line in sparse}), len(set(map(_density, sparse)))
    draw = _draw_dots if num_densities == 1 or num_methods > num_densities else _draw_lines
    save_figure(draw(sparse, baselines, title), output)


def _draw_lines(lines: Sequence[Line], baselines: Mapping[str, tuple[Line, Any]], title: str) -> Any:
    from matplotlib.ticker import NullLocator

    groups: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in lines:
        groups[_method(line), line["offset"]].append(line)
    methods = sorted({method for method, _ in groups})
    several = len({line["method"] for line in lines if line["method"] != "dense"}) > 1
    figure, (axes,) = new_figure(1, 1, width=5.6, height=4.4, title=title)
    for (line, style), label in zip(baselines.values(), baselines, strict=True):
        mean, deviation = _percent(line)
        axes.axhline(mean, linestyle=style, label=label, **BASELINE)
        if line["seeds"] > 1:
            axes.axhspan(mean - deviation, mean + deviation, color="0.45", alpha=0.15, linewidth=0)
    for (method, offset), points in sorted(groups.items()):
        points = sorted(points, key=lambda line: line["density_kept"])
        number, has_offset = methods.index(method), offset != "none"
        colour = COLOURS[number % len(COLOURS)]
        densities = [100 * line["density_kept"] for line in points]
        means, deviations = zip(*map(_percent, points), strict=True)
        label = _label([_kernel(points[0]), *[points[0]["method"]] * several], points[0])
        look: dict[str, Any] = {
            "color": colour,
            "linestyle": offset_line(offset if has_offset else None),
            "marker": MARKERS[number % len(MARKERS)],
            "markersize": 5,
            "markerfacecolor": colour if has_offset else "white",
            "label": label,
        }
        if all(math.isnan(deviation) for deviation in deviations):
            axes.plot(densities, means, **look)
            continue
        axes.errorbar(densities, means, deviations, capsize=2, elinewidth=1, **look)
        lower = [mean - deviation for mean, deviation in zip(means, deviations, strict=True)]
        upper = [mean + deviation for mean, deviation in zip(means, deviations, strict=True)]
        axes.fill_between(densities, lower, upper, color=colour, alpha=0.15, linewidth=0)
    axes.set(xscale="log", xlabel="weights trained (%)", ylabel=QUANTITY, ylim=within_percent(axes.get_ylim()))
    drawn = sorted({float(f"{100 * _density(line):.3g}") for line in lines})
    if len(drawn) <= MAX_TICKS:
        axes.set_xticks(drawn)
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    handles, labels = axes.get_legend_handles_labels()
    add_legend(figure, dict(zip(labels, handles, strict=True)))
    return figure


def _draw_dots(lines: Sequence[Line], baselines: Mapping[str, tuple[Line, Any]], title: str) -> Any:
    methods: dict[str, float] = defaultdict(float)  # by their best accuracy, which sorts them
    for line in lines:
        method = _method(line)
        methods[method] = max(methods[method], line["test_accuracy_final"])
    rows = sorted(methods, key=lambda method: (methods[method], method))
    kernels = sorted({line["offset"] for line in lines}, key=lambda offset: (offset == "none", offset))
    densities = sorted({_density(line) for line in lines}, reverse=True)
    longest = max(len(line) for row in rows for line in row.split("\n"))
    width, height = 0.8 + 0.08 * longest + 2.6 * len(densities), 1.2 + 0.3 * sum(row.count("\n") + 1 for row in rows)
    figure, panels = new_figure(1, len(densities), width=width, height=height, title=title, sharex=True)
    entries: dict[str, Any] = {}
    for axes, density in zip(panels, densities, strict=True):
        for label, (line, style) in baselines.items():
            entries[label] = axes.axvline(_percent(line)[0], linestyle=style, **BASELINE)
        for line in lines:
            if _density(line) != density:
                continue
            mean, deviation = _percent(line)
            number = kernels.index(line["offset"])
            place = rows.index(_method(line)) + 0.24 * ((len(kernels) - 1) / 2 - number)
            colour = COLOURS[number % len(COLOURS)]
            look: dict[str, Any] = {
                "color": colour,
                "marker": MARKERS[number % len(MARKERS)],
                "markerfacecolor": "white" if line["offset"] == "none" else colour,
                "linestyle": "none",
            }
            (entries[_kernel(line)],) = axes.plot(mean, place, **look)
            if line["seeds"] > 1:
                axes.errorbar(mean, place, xerr=deviation, color=colour, capsize=2, elinewidth=1, zorder=1)
        axes.set(xlabel=QUANTITY, yticks=range(len(rows)), yticklabels=rows, ylim=(-0.6, len(rows) - 0.4))
        axes.set_title(f"{100 * density:.3g} % of the weights trained", fontsize=10)
    panels[0].set_xlim(within_percent(panels[0].get_xlim()))  # shared by all
    add_legend(figure, entries)
    return figure


def _is_baseline(line: Line) -> bool:
    return line["method"] == "dense" and line["offset"] == "none"


def _density(line: Line) -> float:
    """Return the density that the config asks for; for masks of another run, the density that they keep."""
    return line["density_asked"] or float(f"{line['density_kept']:.2g}")


def _percent(line: Line) -> tuple[float, float]:
    """Return accuracy and deviation in percent; a single seed has no deviation."""
    deviation = line["test_accuracy_final_std"] if line["seeds"] > 1 else math.nan
    return 100 * line["test_accuracy_final"], 100 * deviation


def _kernel(line: Line) -> str:
    return kernel_name(None if line["offset"] == "none" else line["offset"], line["method"] == "dense")


def _method(line: Line) -> str:
    return _label([line["method"]], line)


def _label(names: Sequence[str], line: Line) -> str:
    """Return names and all other fields that tell a line from others, or, if there are many fields, its runs."""
    fields = [f"{field}={value}" for field, value in line["fields"].items() if value != ""]
    return label_of(", ".join([*names, *([line["runs"]] if len(line["fields"]) > MAX_FIELDS_IN_LABEL else fields)]))
