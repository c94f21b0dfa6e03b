"""Loggers for the metrics of a run, besides its own file: TensorBoard, Weights & Biases, Trackio."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Logger(NamedTuple):
    """A place for metrics: a function that writes the numbers of a step, and a function that closes it."""

    write: Callable[[dict[str, Any], int], None]
    close: Callable[[], None]


def open_loggers(workdir: Path, step: int, config: Any) -> list[Logger]:
    """Return the loggers that a config asks for, for a run that has taken ``step`` steps.

    If TensorBoard is not installed, it is left out. If another logger is not installed, ``ModuleNotFoundError`` is
    raised.
    """
    loggers = []
    if config.tensorboard and (tensorboard := _open_tensorboard(workdir, step)):
        loggers.append(tensorboard)
    if config.wandb != "off":
        loggers.append(_open_wandb(workdir, config))
    if config.trackio:
        loggers.append(_open_trackio(workdir, config))
    return loggers


def _open_tensorboard(workdir: Path, step: int) -> Logger | None:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(values: dict[str, Any], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return Logger(write, writer.close)


def _open_wandb(workdir: Path, config: Any) -> Logger:
    """Open Weights & Biases. Offline, everything stays in the run's directory until ``wandb sync`` sends it."""
    import wandb  # pyright: ignore[reportMissingImports]

    run: Any = wandb.init(
        project="dctps_jax",
        name=workdir.name,
        id=hashlib.sha256(str(workdir).encode()).hexdigest()[:16],  # a resumed run is the same run there
        resume="allow",
        dir=str(workdir),
        config=config.to_dict(),
        mode=config.wandb,
        settings=wandb.Settings(silent=True, console="off"),
    )
    return Logger(lambda values, step: run.log(values, step=step), run.finish)


def _open_trackio(workdir: Path, config: Any) -> Logger:
    """Open Trackio. Its database lies in the run's directory, unless ``TRACKIO_DIR`` names another one.

    Trackio reads that variable only when it is imported. So the seeds of a run share the database of the first seed.
    """
    os.environ.setdefault("TRACKIO_DIR", str(workdir / "trackio"))
    import trackio  # pyright: ignore[reportMissingImports]

    run: Any = trackio.init(
        project="dctps_jax", name=workdir.name, resume="allow", config=config.to_dict(), embed=False
    )
    return Logger(lambda values, step: run.log(values, step=step), run.finish)
