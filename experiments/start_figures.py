"""The figures of ``experiments/start.py``."""

import math
from pathlib import Path
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from dctps_jax.reports.figures import COLOURS, add_legend, new_figure, offset_line, save_figure

LABELS = {"dct": "DCT offset", None: "no offset"}
# The networks whose layers are drawn one by one.
BY_LAYER = ("lenet", "vgg19", "resnet18", "fixup_resnet20")


def draw(found: dict[str, Any], folder: Path) -> None:
    """Write ``loss``, ``likeness`` and ``early``, as PNG and SVG, to ``folder``."""
    draw_loss(found["at start"], folder / "loss.png")
    draw_likeness(found["at start"], folder / "likeness.png")
    draw_early(found["early"], folder / "early.png")


def name_of(case: dict[str, Any]) -> str:
    width = case["options"].get("width")
    return case["network"] + (f", width {width}" if width else "")


def draw_loss(cases: list[dict[str, Any]], output: Path) -> None:
    """Draw the loss of each network before its first step."""
    names = list(dict.fromkeys(map(name_of, cases)))
    figure, (axes,) = new_figure(1, 1, width=6.5, height=4.2, title="Loss before the first step")
    for number, offset in enumerate(LABELS):
        losses = {name_of(case): case["loss"] for case in cases if case["offset"] == offset}
        look = {"color": COLOURS[number], "marker": "os"[number], "linestyle": "none", "label": LABELS[offset]}
        heights = [row + 0.2 * number - 0.1 for row in range(len(names))]  # side by side where they are equal
        axes.plot([losses[name] for name in names], heights, **look)
    axes.axvline(math.log(10), color="0.4", linestyle=":", linewidth=1.5, label="ln 10: knows nothing")
    axes.set(xscale="log", xlabel="cross-entropy", yticks=range(len(names)))
    axes.set_yticklabels(names)
    axes.set_xticks([2, 5, 10, 20, 40], labels=["2", "5", "10", "20", "40"])
    axes.minorticks_off()
    axes.invert_yaxis()
    handles, labels = axes.get_legend_handles_labels()
    add_legend(figure, dict(zip(labels, handles, strict=True)))
    save_figure(figure, output)


def draw_likeness(cases: list[dict[str, Any]], output: Path) -> None:
    """Draw how alike images look to each layer."""
    title = "How alike images look to each layer before the first step"
    figure, all_axes = new_figure(2, 2, width=8, height=5.6, title=title)
    for axes, network in zip(all_axes, BY_LAYER, strict=True):
        members = [case for case in cases if case["network"] == network and case["options"].get("width", 64) == 64]
        for number, case in enumerate(members):
            values = list(case["likeness"].values())
            look = {"color": COLOURS[number], "linestyle": offset_line(case["offset"]), "label": LABELS[case["offset"]]}
            axes.plot(range(1, len(values) + 1), values, **look)
        axes.set_title(network, fontsize=10)
        axes.set(xlabel="layer", ylim=(-0.05, 1.05))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in all_axes[::2]:
        axes.set_ylabel("mean cosine of two images")
    handles, labels = all_axes[0].get_legend_handles_labels()
    add_legend(figure, dict(zip(labels, handles, strict=True)))
    save_figure(figure, output)


def draw_early(cases: list[dict[str, Any]], output: Path) -> None:
    """Draw loss, norms and gradients of the networks with offset while they begin to learn, one column for each."""
    columns = [case for case in cases if case["offset"]]
    figure, all_axes = new_figure(
        3, len(columns), width=3.6 * len(columns), height=8, title="The first steps", sharey=False
    )
    for number, case in enumerate(columns):
        top, middle, bottom = all_axes[number :: len(columns)]
        for other in cases:
            if (other["network"], other["density"]) == (case["network"], case["density"]):
                steps = [max(0.5, row["step"]) for row in other["rows"]]
                look = {"color": "black", "linestyle": offset_line(other["offset"])}
                top.plot(steps, [row["loss"] for row in other["rows"]], **look, label=LABELS[other["offset"]])
        top.axhline(math.log(10), color="0.4", linestyle=":", linewidth=1.5)
        top.set_title(f"{case['network']}, {100 * case['density']:g} % of the weights", fontsize=10)
        top.legend(frameon=False, fontsize=8)
        steps = [max(0.5, row["step"]) for row in case["rows"]]
        for layer in range(len(case["paths"])):
            shade = str(0.15 + 0.6 * layer / len(case["paths"]))
            rows = [row["layers"][layer] for row in case["rows"]]
            middle.plot(steps, [row["alpha D"] for row in rows], color=COLOURS[0], alpha=1 - float(shade))
            middle.plot(steps, [row["S"] for row in rows], color=COLOURS[1], alpha=1 - float(shade))
            bottom.plot(steps, [row["gradient of alpha"] for row in rows], color=COLOURS[0], alpha=1 - float(shade))
            bottom.plot(steps, [row["gradient of S"] for row in rows], color=COLOURS[1], alpha=1 - float(shade))
        for axes in (top, middle, bottom):
            axes.set(xscale="log", yscale="log")
        top.set_yticks([2, 3, 5, 10, 20], labels=["2", "3", "5", "10", "20"])
        top.minorticks_off()
        bottom.set_xlabel("step (leftmost point: step 0)")
    for axes, label in zip(all_axes[:: len(columns)], ("loss", "norm", "norm of the gradient"), strict=True):
        axes.set_ylabel(label)
    entries = {
        "α·D (bottom row: α)": Line2D([], [], color=COLOURS[0]),
        "S": Line2D([], [], color=COLOURS[1]),
    }
    add_legend(figure, entries, "one line per layer,\ndark: first, light: last")
    save_figure(figure, output)
