"""The directory of a run: claimed by one process, bound to one config, written so that a kill leaves whole files."""

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from dctps_jax.config import flat_fields
from dctps_jax.errors import UserError

# Where the files lie and how often the screen is written does not change what a run computes (but see `check_same`); how it computes does to rounding only.
FREE_FIELDS: tuple[str, ...] = (
    "parallel_seeds",  # in configs of version 0.1.0 only
    "data.dir",
    "data.cache_dir",
    "data.download",
    "execution.form",
    "execution.method",
    "execution.layer_methods",
    "execution.explain",
    "execution.min_loop",
    "execution.remat",
    "execution.keep_memory",
    "log_every_steps",
    "tensorboard",
    "multi_host",
)

# What a run writes; none of it may be there before the run's config.json.
FILES = ("results.json", "metrics.jsonl", "masks.npz", "masks_initial.npz", "checkpoints", "tensorboard")


class InUse(UserError):
    """A directory that another process works in."""

    exit_code = 75


@contextlib.contextmanager
def claim(workdir: Path, config: Any) -> Iterator[None]:
    """Hold ``workdir`` for this process; check the config of an old one. A new one is bound by ``record_config`` later.

    Raises :class:`~dctps_jax.errors.UserError` where the directory belongs to another config (naming the fields that
    differ) or cannot be written, :class:`InUse` where another process holds it.
    """
    if jax.process_index() != 0:  # one host of several answers for the directory
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("a")
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"--workdir {workdir} is, or lies below, a file; choose a directory") from error
    except OSError as error:
        raise UserError(
            f"--workdir {workdir} cannot be written ({error.strerror}); choose another directory"
        ) from error
    with lock:
        if not _try_lock(lock):
            raise InUse(f"--workdir {workdir} is in use by another run; wait for it or choose another directory")
        path = workdir / "config.json"
        if path.exists():
            check_same(workdir, json.loads(config.to_json()))
        elif found := [name for name in FILES if (workdir / name).exists()]:
            raise UserError(
                f"--workdir {workdir} holds {found[0]} but no config.json of a run; choose another directory"
            )
        yield


def is_in_use(workdir: Path) -> bool:
    """Return whether another process holds ``workdir``."""
    if not (workdir / ".lock").exists():
        return False
    with (workdir / ".lock").open("a") as lock:
        return not _try_lock(lock)


def record_config(workdir: Path, config: Any) -> None:
    """Bind a new directory to its config: called when nothing can be wrong with it any more, before other files."""
    if jax.process_index() == 0 and not (workdir / "config.json").exists():
        write_json(workdir / "config.json", json.loads(config.to_json()))


def read_json(path: Path) -> Any:
    """Read a JSON file; a damaged one is a :class:`~dctps_jax.errors.UserError` that names it."""
    if not path.exists():
        raise UserError(f"{path} does not exist; give the directory of a run")
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); restore it or choose another directory") from error


def read_config(workdir: Path) -> dict[str, Any]:
    """Return the config of a run; what is none is a :class:`~dctps_jax.errors.UserError`."""
    needed = {"model.name", "model.offset", "pruning.density", "pruning.method", "data.name"}
    return _read_fields(workdir / "config.json", needed, "is no config of a run")


def read_results(workdir: Path) -> dict[str, Any]:
    """Return what a finished run came to; what is nothing of the kind is a :class:`~dctps_jax.errors.UserError`."""
    needed = {"test_accuracy_final", "density", "density_asked", "trainable_parameters"}
    return _read_fields(workdir / "results.json", needed, "is not what a finished run leaves")


def _read_fields(path: Path, needed: set[str], otherwise: str) -> dict[str, Any]:
    values = read_json(path)
    if not isinstance(values, dict) or not needed <= set(dict(flat_fields(values))):
        raise UserError(f"{path} {otherwise}; restore it or choose another directory")
    return values


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole: under a temporary name, to the disk, then renamed."""
    write_whole(path, json.dumps(value, indent=2) + "\n")


def write_whole(path: Path, content: str | bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def free_fields(config: dict[str, Any]) -> set[str]:
    """Return :data:`FREE_FIELDS` as far as they are free in a config by dotted field: an image folder is known by its place alone."""
    return set(FREE_FIELDS) - ({"data.dir"} if config.get("data.name") == "image_folder" else set())


def check_same(workdir: Path, config: dict[str, Any]) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` where a directory belongs to a run with another config, naming what differs."""
    found = dict(flat_fields(_read_fields(workdir / "config.json", set(), "is no config of a run")))
    asked = dict(flat_fields(config))
    free = free_fields(asked)
    different = [
        f"{field} ({found.get(field, 'absent')!r} there, {asked.get(field, 'absent')!r} now)"
        for field in sorted(found.keys() | asked.keys())
        if field not in free and found.get(field) != asked.get(field)
    ]
    if different:
        raise UserError(
            f"--workdir {workdir} belongs to a run with another config: {', '.join(different)}; use that config, or "
            "another directory"
        )


def _try_lock(file: Any) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
