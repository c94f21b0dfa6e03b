"""What the figures of the package share: their look and their files."""

from pathlib import Path
from typing import Any

from dctps_jax.errors import UserError
from dctps_jax.offsets import OFFSETS

# Okabe and Ito's colours, which the colour-blind tell apart; dashes serve where there is no colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
# A network without offset has dashes; each offset, in the order of the registry, has another line.
NO_OFFSET_LINE = (0, (4, 2))
OFFSET_LINES = ("-", (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (6, 1, 1, 1)))


def offset_label(name: str) -> str:
    """Return how figures call the offset of this name; a name that the package does not know stands for itself."""
    return OFFSETS[name].label if name in OFFSETS else name


def offset_line(name: str | None) -> Any:
    """Return the line style of an offset by its name, or of networks without offset."""
    if name is None:
        return NO_OFFSET_LINE
    return OFFSET_LINES[list(OFFSETS).index(name) % len(OFFSET_LINES) if name in OFFSETS else -1]


def figure_files(output: Path) -> list[Path]:
    """Return the names of a figure as PNG and SVG; a folder that does not exist is a UserError."""
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output is {output}, but {output.parent} is no directory; create it or name another one")
    name = output.name.removesuffix(".png").removesuffix(".svg")
    return [output.with_name(name + suffix) for suffix in (".png", ".svg")]


def save_figure(figure: Any, output: Path) -> None:
    """Write a figure to its files, the same bytes each time."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "dctps_jax"}):
        for file in figure_files(output):
            figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def new_figure(rows: int, columns: int, *, width: float, height: float) -> tuple[Any, list[Any]]:
    """Return a figure of ``rows × columns`` axes, in inches, and the axes row by row."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {
        "lines.linewidth": 2, "font.size": 10, "axes.grid": True, "grid.color": "0.9",
        "axes.spines.top": False, "axes.spines.right": False,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    return figure, list(axes.flat)
