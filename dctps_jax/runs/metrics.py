"""The metrics of a running run: ``metrics.jsonl``, the loggers, and a line for each row on the screen."""

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dctps_jax.distributed.agreement import is_first
from dctps_jax.errors import UserError
from dctps_jax.files import parse_json, read_file, write_whole
from dctps_jax.runs.fields import check_row
from dctps_jax.runs.loggers import Logger


class MetricsLog:
    """``metrics.jsonl``: one JSON object an epoch. The checkpoint of an epoch is written first, and holds the rows."""

    def __init__(
        self,
        workdir: Path,
        step: int,
        rows: list[dict[str, Any]] | None = None,
        open_loggers: Callable[[], Sequence[Logger]] = tuple,
    ):
        """Open the log of a run that has taken ``step`` steps, with the ``rows`` that its checkpoint holds.

        Without ``rows``, as in checkpoints of format 2, the rows of the file count. Rows after ``step`` are dropped,
        since the run will write them again.
        """
        self.path = workdir / "metrics.jsonl"
        self.rows = [row for row in read_rows(self.path) if row["step"] <= step] if rows is None else list(rows)
        self._writes = is_first()
        self._loggers: Sequence[Logger] = ()
        if self._writes:
            write_rows(self.path, self.rows)
            self._loggers = open_loggers()

    def check_rows_of(self, epochs: int) -> None:
        """Raise :class:`~dctps_jax.errors.UserError` unless there is a row for each of the first ``epochs``."""
        if len(self.rows) < epochs:
            raise UserError(
                f"{self.path} has {len(self.rows)} rows, but the run is {epochs} epochs on; restore it or choose "
                "another directory"
            )

    def append(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if not self._writes:
            return
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        values = {
            name: value
            for name, value in row.items()
            if isinstance(value, int | float) and name not in ("epoch", "step")
        }
        for logger in self._loggers:
            logger.write(values, row["step"])

    def best_row(self) -> dict[str, Any] | None:
        """Return the best of all rows, see :func:`best_of`."""
        return best_of(self.rows)

    def close(self) -> None:
        for logger in self._loggers:
            logger.close()


def best_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the first row with the highest validation accuracy, None without rows.

    If the density changes from epoch to epoch, only rows with the last density compete. Rows that a run has inherited,
    from the run whose weights it began with, do not compete.
    """
    own = [row for row in rows if not row.get("inherited")]
    same = [row for row in own if row.get("density") == own[-1].get("density")]
    return max(same, key=lambda row: row["val_accuracy"], default=None)


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows of a ``metrics.jsonl``, unless it holds them already: a full disk has no room for a copy."""
    content = content_of(rows)
    if not path.is_file() or path.read_bytes() != content:
        write_whole(path, content)


def content_of(rows: Sequence[dict[str, Any]]) -> bytes:
    """Return the content of a ``metrics.jsonl`` with these rows."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a ``metrics.jsonl``, or no rows if there is no file.

    A last line that a kill cut short is left out. Raises :class:`~dctps_jax.errors.UserError` if another line is
    damaged, or the rows do not follow each other.
    """
    content = read_file(path) if path.exists() else b""
    *lines, rest = content.split(b"\n")
    if rest and _is_json(rest):
        lines.append(rest)
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(line)
            check_row(row, rows)
        except ValueError as error:
            raise UserError(
                f"{path} is damaged in line {number} ({error}); restore it or choose another directory"
            ) from error
        rows.append(row)
    return rows


def _is_json(text: bytes) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True


def describe(row: dict[str, Any], num_epochs: int) -> str:
    """Return a row as one aligned line for the screen."""
    width = len(str(num_epochs))
    speed = "" if row["images_per_second"] is None else f"  {row['images_per_second']:,.0f} images/s"
    return (
        f"epoch {row['epoch']:{width}d}/{num_epochs}  step {row['step']:6d}  train loss {row['train_loss']:.4f}  "
        f"val loss {row['val_loss']:.4f}  val accuracy {row['val_accuracy']:7.2%}  "
        f"rate {row['learning_rate']:.2g}{speed}"
    )


def mean_and_std(values: list[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation (0 for a single value)."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, 0.0
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
