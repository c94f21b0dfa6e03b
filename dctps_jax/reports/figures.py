"""What the figures of the package share: their look and their files."""

import io
from pathlib import Path
from typing import Any

from dctps_jax.files import check_target, printable, write_whole
from dctps_jax.offsets import OFFSETS

# Okabe and Ito's colours, which the colour-blind tell apart; dashes serve where there is no colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
# A network without offset has dashes; each offset, in the order of the registry, has another line.
NO_OFFSET_LINE = (0, (4, 2))
OFFSET_LINES = ("-", (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (6, 1, 1, 1)))


def offset_line(name: str | None) -> Any:
    """Return the line style of an offset by its name, or of networks without offset (None)."""
    return NO_OFFSET_LINE if name is None else OFFSET_LINES[list(OFFSETS).index(name) % len(OFFSET_LINES)]


def figure_files(output: Path) -> list[Path]:
    """Return the names of a figure as PNG and SVG; what cannot be written to is a UserError."""
    check_target("--output", output)
    name = output.name.removesuffix(".png").removesuffix(".svg")
    files = [output.with_name(name + suffix) for suffix in (".png", ".svg")]
    for file in files:
        check_target("--output", file)
    return files


def label_of(name: str) -> str:
    """Return a name, of a folder for instance, as matplotlib prints it letter by letter."""
    # Between dollars it would set formulas, and it leaves out labels that begin with an underscore.
    return ("\N{ZERO WIDTH SPACE}" if name.startswith("_") else "") + printable(name).replace("$", r"\$")


def save_figure(figure: Any, output: Path) -> None:
    """Write a figure to its files, the same bytes each time."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "dctps_jax"}):
        for file in figure_files(output):
            content = io.BytesIO()
            figure.savefig(content, format=file.suffix[1:], metadata={"Date": None} if file.suffix == ".svg" else None)
            write_whole(file, content.getvalue())


def new_figure(rows: int, columns: int, *, width: float, height: float) -> tuple[Any, list[Any]]:
    """Return a figure of ``rows × columns`` axes, in inches, and the axes row by row."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {
        "lines.linewidth": 2,
        "font.size": 10,
        "axes.grid": True,
        "grid.color": "0.9",
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    return figure, list(axes.flat)
