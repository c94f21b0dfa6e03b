"""Draw the validation accuracy of runs by epoch: ``python -m dctps_jax.analysis.curves RUN [RUN …] --output FILE``.

Runs that differ in nothing but their seed share a line, their mean, and a band from the lowest to the highest.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from dctps_jax.analysis.figures import COLOURS, figure_files
from dctps_jax.config import flat_fields
from dctps_jax.errors import UserError
from dctps_jax.training.metrics import read_rows
from dctps_jax.training.workdir import FREE_FIELDS, read_json

Setting = tuple[tuple[str, Any], ...]


def draw_curves(runs: list[Path], output: Path) -> None:
    """Draw one line for each setting among ``runs`` and save it as ``output``, with ``.png`` and ``.svg``.

    The colour stands for the density, full lines for the DCT offset and dashed ones for none. Raises
    :class:`~dctps_jax.errors.UserError` where a run has no metrics.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    files = figure_files(output)
    settings: dict[Setting, list[np.ndarray]] = defaultdict(list)
    for run in runs:
        config, rows = read_json(run / "config.json"), read_rows(run / "metrics.jsonl")
        if not rows:
            raise UserError(f"{run / 'metrics.jsonl'} has no rows; give the directory of a run that has begun")
        settings[_setting_of(config)].append(np.array([row["val_accuracy"] for row in rows]))
    labels = _labels(list(settings))
    densities = sorted({_density(setting) for setting in settings}, reverse=True)
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for setting in sorted(settings, key=lambda setting: (-_density(setting), labels[setting])):
        curves = settings[setting]
        length = min(map(len, curves))
        values = 100 * np.stack([curve[:length] for curve in curves])
        epochs = np.arange(1, length + 1)
        colour = COLOURS[densities.index(_density(setting)) % len(COLOURS)]
        style = "-" if dict(setting)["model.offset"] else (0, (4, 2))
        axes.plot(epochs, values.mean(0), color=colour, linestyle=style, linewidth=2, label=labels[setting])
        axes.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="epoch", ylabel="validation accuracy (%)", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="weights trained", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    for file in files:
        figure.savefig(file, dpi=150)
    plt.close(figure)


def _setting_of(config: dict[str, Any]) -> Setting:
    """Return everything that may change a run's numbers but its seed."""
    ignored = {"seed", "num_seeds", *FREE_FIELDS}
    return tuple((field, str(value) if isinstance(value, list) else value)
                 for field, value in sorted(flat_fields(config)) if field not in ignored)  # fmt: skip


def _density(setting: Setting) -> float:
    return dict(setting)["pruning.density"]


def _labels(settings: list[Setting]) -> dict[Setting, str]:
    """Name the density and the offset of each, and of the rest what differs between them."""
    named = ("pruning.density", "model.offset")
    fields = {field for setting in settings for field, _ in setting if field not in named}
    differing = [field for field in sorted(fields) if len({dict(setting).get(field) for setting in settings}) > 1]
    labels = {}
    for setting in settings:
        values = dict(setting)
        words = [f"{100 * values['pruning.density']:g} %", "α·DCT + sparse" if values["model.offset"] else "sparse"]
        labels[setting] = ", ".join([*words, *(str(values.get(field)) for field in differing)])
    return labels


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="directories of runs")
    parser.add_argument("--output", type=Path, default=Path("curves.png"), help="file to write, as .png and .svg")
    arguments = parser.parse_args()
    try:
        draw_curves(arguments.runs, arguments.output)
        print(f"written: {', '.join(map(str, figure_files(arguments.output)))}")
    except UserError as error:
        sys.exit(f"curves: {error}")


if __name__ == "__main__":
    main()
