"""The paper's figure: test accuracy against the share of weights that are trained."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dctps_jax.offsets import OFFSETS
from dctps_jax.reports.figures import COLOURS, MARKERS, label_of, new_figure, offset_line, save_figure

MAX_TICKS = 10


def draw_accuracy(lines: Sequence[dict[str, Any]], output: Path) -> None:
    """Draw a line for each method and offset. Save the figure with ``.png`` and ``.svg``.

    Bars and bands show a standard deviation. ``lines`` are those of the report. The colour and the marker stand for the
    method, the kind of line for the offset. Networks without offset have dashes and hollow markers. The dense network
    without offset is a horizontal line with a band.
    """
    from matplotlib.ticker import NullLocator

    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    dense = []
    for line in lines:
        accuracy = line["test_accuracy_final"]
        if accuracy is None:
            continue
        rest = ", ".join(f"{name}={value}" for name, value in line.items() if "." in name)
        if line["method"] == "dense" and line["offset"] == "none":
            dense.append((rest, line))
        else:
            groups[line["method"], line["offset"], rest].append(line)
    methods = sorted({(method, rest) for method, _, rest in groups})
    figure, (axes,) = new_figure(1, 1, width=7.5, height=4.4)
    for number, (rest, line) in enumerate(dense):
        label = label_of(", ".join(filter(None, ["dense, no offset", rest])))
        style = ("-", (0, (1, 1)), (0, (3, 1, 1, 1)))[number % 3]
        mean, deviation = 100 * line["test_accuracy_final"], 100 * line["test_accuracy_final_std"]
        axes.axhline(mean, color="0.45", linestyle=style, linewidth=1.5, label=label, zorder=1)
        axes.axhspan(mean - deviation, mean + deviation, color="0.45", alpha=0.15, linewidth=0)
    for (method, offset, rest), points in sorted(groups.items()):
        points = sorted(points, key=lambda line: line["density_kept"])
        number = methods.index((method, rest))
        densities = [100 * line["density_kept"] for line in points]
        means = [100 * line["test_accuracy_final"] for line in points]
        deviations = [100 * line["test_accuracy_final_std"] for line in points]
        has_offset = offset != "none"
        name = f"{OFFSETS[offset].label} offset" if has_offset else "no offset"
        label = label_of(", ".join(filter(None, [method, name, rest])))
        colour = COLOURS[number % len(COLOURS)]
        axes.errorbar(
            densities,
            means,
            deviations,
            capsize=2,
            elinewidth=1,
            color=colour,
            label=label,
            linestyle=offset_line(offset if has_offset else None),
            marker=MARKERS[number % len(MARKERS)],
            markersize=5,
            markerfacecolor=colour if has_offset else "white",
        )
        lower = [mean - deviation for mean, deviation in zip(means, deviations, strict=True)]
        upper = [mean + deviation for mean, deviation in zip(means, deviations, strict=True)]
        axes.fill_between(densities, lower, upper, color=colour, alpha=0.15, linewidth=0)
    axes.set(xscale="log", xlabel="weights trained (%)", ylabel="test accuracy (%)")
    drawn = sorted({float(f"{100 * line['density_kept']:.2g}") for points in groups.values() for line in points})
    if len(drawn) <= MAX_TICKS:
        axes.set_xticks(drawn)
        axes.xaxis.set_minor_locator(NullLocator())
    if len(drawn) == 1:
        axes.set_xlim(drawn[0] / 10, drawn[0] * 10)  # the ticks alone would push the points to the border
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    save_figure(figure, output)
