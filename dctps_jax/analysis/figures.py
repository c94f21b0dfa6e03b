"""What the figures of the package share: their colours and their files."""

from pathlib import Path

from dctps_jax.errors import UserError

# Okabe and Ito's colours, which the colour-blind tell apart; dashes serve where there is no colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def figure_files(output: Path) -> list[Path]:
    """Return the names of a figure as PNG and SVG; a folder that does not exist is a UserError."""
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output is {output}, but {output.parent} is no directory; create it or name another one")
    name = output.name.removesuffix(".png").removesuffix(".svg")
    return [output.with_name(name + suffix) for suffix in (".png", ".svg")]
