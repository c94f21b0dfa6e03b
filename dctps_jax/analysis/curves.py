"""Draw the validation accuracy of runs by epoch: ``python -m dctps_jax.analysis.curves RUN [RUN …] --output FILE``.

Runs that differ in nothing but their seed share a line, their mean, and a band from the lowest to the highest.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from dctps_jax.errors import UserError
from dctps_jax.training.metrics import read_rows
from dctps_jax.training.workdir import read_json

# Okabe and Ito's colours, which the colour-blind tell apart; dashes serve where there is no colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def draw_curves(runs: list[Path], output: Path) -> None:
    """Draw one line for each setting among ``runs`` and save it as ``output``, with ``.png`` and ``.svg``.

    The colour stands for the density, full lines for the DCT offset and dashed ones for none. Raises
    :class:`~dctps_jax.errors.UserError` where a run has no metrics.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    settings: dict[tuple, list[np.ndarray]] = defaultdict(list)
    for run in runs:
        config, rows = read_json(run / "config.json"), read_rows(run / "metrics.jsonl")
        if not rows:
            raise UserError(f"{run / 'metrics.jsonl'} has no rows; give the directory of a run that has begun")
        settings[_setting_of(config)].append(np.array([row["val_accuracy"] for row in rows]))
    densities = sorted({setting[0] for setting in settings}, reverse=True)
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for setting in sorted(settings, key=lambda setting: (-setting[0], setting[1] is None, setting[2:])):
        curves = settings[setting]
        length = min(map(len, curves))
        values = 100 * np.stack([curve[:length] for curve in curves])
        epochs = np.arange(1, length + 1)
        colour = COLOURS[densities.index(setting[0]) % len(COLOURS)]
        style = "-" if setting[1] else (0, (4, 2))
        axes.plot(epochs, values.mean(0), color=colour, linestyle=style, linewidth=2, label=_label(setting, settings))
        axes.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="epoch", ylabel="validation accuracy (%)", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="weights trained", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    for suffix in (".png", ".svg"):
        figure.savefig(output.with_suffix(suffix), dpi=150)
    plt.close(figure)


def _setting_of(config: dict[str, Any]) -> tuple:
    return (
        config["pruning"]["density"],
        config["model"]["offset"],
        config["pruning"]["method"],
        config["model"]["name"],
        config["data"]["name"],
    )


def _label(setting: tuple, settings: Any) -> str:
    """Name the density and the offset, and of the rest only what differs between the runs."""
    density, offset, *rest = setting
    words = [f"{100 * density:g} %", "α·DCT + sparse" if offset else "sparse"]
    words += [name for place, name in enumerate(rest, 2) if len({other[place] for other in settings}) > 1]
    return ", ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="directories of runs")
    parser.add_argument("--output", type=Path, default=Path("curves.png"), help="file to write, as .png and .svg")
    arguments = parser.parse_args()
    try:
        draw_curves(arguments.runs, arguments.output)
    except UserError as error:
        sys.exit(f"curves: {error}")


if __name__ == "__main__":
    main()
