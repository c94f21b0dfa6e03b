"""What the figures of the package share: their words, their look and their files."""

import io
import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dctps_jax.errors import UserError
from dctps_jax.files import check_target, printable, write_whole
from dctps_jax.offsets import OFFSETS

# Okabe and Ito's colours, which colour-blind people can tell apart; dashes help where there is no colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX*"  # one more than the colours: a colour and a marker together tell 56 runs apart
# A network without offset has dashes. Each offset has another line, in the order of the registry.
NO_OFFSET_LINE = (0, (4, 2))
OFFSET_LINES = ("-", (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (6, 1, 1, 1)))
# If there are more runs than colours, other dashes tell them apart, also where lines lie on one another.
DASHES = ("-", (0, (4, 2)), (0, (1, 1)), (0, (6, 1, 1, 1)))
LONGEST_LABEL, LONGEST_TITLE = 46, 70  # characters of a line
HEADROOM = 0.04  # of an axis, beyond its data


def offset_line(name: str | None) -> Any:
    """Return the line style of an offset by its name, or of networks without offset (None)."""
    return NO_OFFSET_LINE if name is None else OFFSET_LINES[list(OFFSETS).index(name) % len(OFFSET_LINES)]


def kernel_name(offset: str | None, is_dense: bool) -> str:
    """Return how the figures call a kernel: "DCT + sparse", "sparse", "DCT + dense" or "dense"."""
    trained = "dense" if is_dense else "sparse"
    return trained if offset is None else f"{OFFSETS[offset].label} + {trained}"


def figure_files(output: Path) -> list[Path]:
    """Return the files of a figure: PNG and SVG, or a PDF where ``output`` is one.

    Raises UserError if a file cannot be written there, and for any other format of images.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    check_target("--output", output)
    suffix = output.suffix.lower()
    if suffix == ".pdf":
        return [output]
    if suffix[1:] in set(FigureCanvasBase.get_supported_filetypes()) - {"png", "svg"}:
        raise UserError(f"--output is {output}; figures are written as .png and .svg, or as .pdf: name one of these")
    name = output.name[: -len(suffix)] if suffix in (".png", ".svg") else output.name
    files = [output.with_name(name + suffix) for suffix in (".png", ".svg")]
    for file in files:
        check_target("--output", file)
    return files


def label_of(name: str, longest: int = LONGEST_LABEL) -> str:
    """Return a name, e.g. of a folder, so that matplotlib prints it letter by letter, in lines that are not long.

    Lines end at spaces and after commas; a comma has a space behind it.
    """
    # Matplotlib sets text between dollars as a formula, and leaves out labels that begin with an underscore.
    text = ("\N{ZERO WIDTH SPACE}" if name.startswith("_") else "") + printable(name).replace("$", r"\$")
    return "\n".join(textwrap.wrap(re.sub(r",(?=\S)", ", ", text), longest, break_on_hyphens=False))


def look_of(number: int) -> dict[str, Any]:
    """Return colour, marker and dashes of one of many runs, by its number."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[number % len(DASHES)],
    }


def seeds_in_title(numbers: Iterable[int]) -> str:
    """Return what a title says of bars and bands, given how many seeds each line has; "" if each has one."""
    seeds = sorted(set(numbers))
    if seeds == [1]:
        return ""
    return f", mean ± deviation of {'–'.join(map(str, sorted({seeds[0], seeds[-1]})))} seeds"


def within_percent(limits: tuple[float, float]) -> tuple[float, float]:
    """Return the limits of an axis of percentages, cut to possible percentages.

    A small margin stays on both sides, so that no line or marker at 0 or 100 is cut. It is too small for a tick.
    """
    low, high = limits
    return max(low, -HEADROOM * high), min(high, 100 + HEADROOM * (100 - low))


def add_legend(figure: Any, entries: Mapping[str, Any], title: str | None = None) -> None:
    """Put a legend to the right of the figure; ``entries`` are artists by label. The saved picture has room for it."""
    look: dict[str, Any] = {"frameon": False, "fontsize": 9, "handlelength": 3}
    figure.legend(entries.values(), entries, title=title, loc="center left", bbox_to_anchor=(1, 0.5), **look)


def save_figure(figure: Any, output: Path) -> None:
    """Write a figure to its files, including everything beside its axes; the same figure gives the same bytes."""
    import matplotlib

    undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    with matplotlib.rc_context({"svg.hashsalt": "dctps_jax"}):
        for file in figure_files(output):
            content = io.BytesIO()
            kind = file.suffix.lower()
            figure.savefig(content, format=kind[1:], metadata=undated.get(kind), bbox_inches="tight")
            write_whole(file, content.getvalue())


def new_figure(
    rows: int, columns: int, *, width: float, height: float, title: str, sharex: bool = False, sharey: bool = True
) -> tuple[Any, list[Any]]:
    """Return a figure of ``rows × columns`` axes, in inches, and the axes row by row."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {
        "lines.linewidth": 2,
        "font.size": 10,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "0.9",
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
        figure.suptitle(label_of(title, LONGEST_TITLE), fontsize=11)
        axes = figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)
    return figure, list(axes.flat)
