"""The directory of a run: claimed by one process, bound to one config, written so that a kill leaves whole files."""

import contextlib
import errno
import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dctps_jax.data.sources import reads_any_folder
from dctps_jax.defaults import FIELDS
from dctps_jax.distributed.agreement import check_shared, is_first, on_first
from dctps_jax.distributed.process_group import log_into
from dctps_jax.errors import UserError, some_of
from dctps_jax.field import flat_fields
from dctps_jax.files import digest_of, read_json, write_whole
from dctps_jax.runs.fields import check_config_fields, check_object, check_results
from dctps_jax.runs.seal import check_seal, is_sealed_as, sealed

# The fields that a resumed run may change. The other fields identify a run (`identity`). Do not add a field to these or
# remove one: the identity of existing runs would change.
FREE_FIELDS: tuple[str, ...] = (
    "parallel_seeds",  # in configs of earlier versions only
    "multi_host",
    *(name for name, field in FIELDS.items() if field.resume),
)

# The fields in which a run may grow.
GROWING_FIELDS: tuple[str, ...] = tuple(name for name, field in FIELDS.items() if field.grows)

# The fields that configs of earlier versions lack, and the values that such configs mean, as in JSON.
ADDED_FIELDS: dict[str, Any] = {
    name: list(field.default) if isinstance(field.default, tuple) else field.default
    for name, field in FIELDS.items()
    if field.added
}

# The files of a run. None of them may be there before the run's config.json.
FILES = ("results.json", "data.json", "metrics.jsonl", "masks.npz", "masks_initial.npz", "checkpoints", "tensorboard")

# Files of others: a report's, and Orbax's in a checkpoint. A directory with one of them is none for a run.
FOREIGN = ("runs.jsonl", "_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt")


# Older checkpoints include num_epochs in the name of their run. To recognise one, each number of epochs up to this one
# is tried.
MOST_EPOCHS_NAMED = 1000

# How many fields a message names.
MAX_SHOWN = 5
# Bytes of the longest path below a work directory: a path in a checkpoint that is being written.
LONGEST_PATH = 120


class InUse(UserError):
    """A directory that another process works in."""

    exit_code = 75


@contextlib.contextmanager
def claim(workdir: Path, config: Any) -> Iterator[None]:
    """Hold ``workdir`` for this process and check the config of an existing run in it.

    ``record_config`` binds a new directory later. Of several processes the first one holds it for all. Raises
    :class:`~dctps_jax.errors.UserError`, with the fields that differ, if the directory belongs to another config. Also
    raises it if the directory cannot be written, or is not the same for all processes, and :class:`InUse` if another
    run holds it.
    """
    with contextlib.ExitStack() as stack:
        on_first(lambda: stack.enter_context(_hold(workdir, config)))
        check_shared(workdir)
        log_into(workdir)
        yield


@contextlib.contextmanager
def _hold(workdir: Path, config: Any) -> Iterator[None]:
    _check_name(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = _open_lock(workdir)
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
        elif found := [name for name in (*FILES, *FOREIGN) if (workdir / name).exists()]:
            raise UserError(
                f"--workdir {workdir} holds {found[0]} but no config.json of a run; choose another directory"
            )
        elif runs := _runs_in(workdir):
            raise UserError(
                f"--workdir {workdir} holds the directories of other runs ({some_of(runs, MAX_SHOWN)}); a run needs a "
                "directory of its own, choose another"
            )
        yield


def _runs_in(workdir: Path) -> list[str]:
    """Return the names of the runs in a directory, other than the seeds of one run."""
    names = sorted(file.parent.name for file in workdir.glob("*/config.json"))
    return [name for name in names if not re.fullmatch(r"seed_\d+", name)]


def _check_name(workdir: Path) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` for a name below which no checkpoint can be written."""
    shown = str(workdir).encode(errors="backslashreplace").decode()
    if shown != str(workdir):
        raise UserError(f"--workdir {shown} is no UTF-8, as Orbax needs it; choose another name")
    try:
        os.stat(workdir / ("x" * LONGEST_PATH))
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(
                f"--workdir {shown[:40]}… is too long with {len(os.fsencode(workdir))} bytes; choose a shorter name"
            ) from error


def is_in_use(workdir: Path) -> bool:
    """Return whether another process holds ``workdir``."""
    if not (workdir / ".lock").exists():
        return False
    with _open_lock(workdir) as lock:
        return not _try_lock(lock)


def record_config(workdir: Path, config: Any) -> None:
    """Bind a new directory to its config. Called once all checks have passed, and before other files are written."""
    if not (workdir / "config.json").exists():
        write_json(workdir / "config.json", json.loads(config.to_json()))


def read_config(workdir: Path) -> dict[str, Any]:
    """Return the config of a run; raise :class:`~dctps_jax.errors.UserError` if the file holds something else."""
    return _read_fields(workdir / "config.json", check_config_fields, "is no config of a run")


def write_results(
    workdir: Path, results: dict[str, Any], config: dict[str, Any], digests: dict[str, str]
) -> dict[str, Any]:
    """Write ``results.json``; return its content: ``results`` and the digests of the run's files."""
    content = sealed(results, {"config": identity(config), **digests})
    if is_first():
        write_json(workdir / "results.json", content)
    return content


def read_results(workdir: Path) -> dict[str, Any]:
    """Return the results of a finished run.

    Raises :class:`~dctps_jax.errors.UserError` for a run that is not finished, and for a file that is damaged, holds
    something else, or belongs to a run with another config than ``config.json``.
    """
    if (workdir / "config.json").exists() and not (workdir / "results.json").exists():
        raise UserError(
            f"{workdir} is the directory of a run that is not finished; give the command that trains it again, which "
            "goes on from the last checkpoint"
        )

    def check(values: Any) -> None:
        check_results(values)
        check_seal(values)

    advice = "restore it, or remove it and give the command of the run again, which makes it anew from the checkpoint"
    results = _read_fields(workdir / "results.json", check, "is not what a finished run leaves", advice)
    if not is_sealed_as(results, "config", identity(read_config(workdir))):
        raise UserError(
            f"{workdir} holds a config.json and a results.json of different runs, or one of them is damaged; restore "
            "them"
        )
    return results


def _read_fields(
    path: Path, check: Callable[[Any], None], otherwise: str, advice: str = "restore it or choose another directory"
) -> dict[str, Any]:
    values = read_json(path)
    try:
        check(values)
    except ValueError as error:
        raise UserError(f"{path} {otherwise}: {error}; {advice}") from error
    return values


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole: under a temporary name, to the disk, then renamed."""
    write_whole(path, json.dumps(value, indent=2) + "\n")


def free_fields(config: dict[str, Any]) -> set[str]:
    """Return the fields of :data:`FREE_FIELDS` that are free in a config by dotted field.

    ``data.dir`` is not free for a source that reads whatever lies there: nothing else tells which images these are.
    """
    return set(FREE_FIELDS) - ({"data.dir"} if reads_any_folder(config.get("data.name", "")) else set())


def identity(config: dict[str, Any]) -> str:
    """Return a digest of the fields that identify the run of a config, a JSON object.

    A field that earlier versions lack is left out if it has its default, so that their runs keep their identity.
    """
    fields = dict(flat_fields(config))
    left_out = free_fields(fields) | {field for field, default in ADDED_FIELDS.items() if fields.get(field) == default}
    return digest_of({field: value for field, value in fields.items() if field not in left_out})


def name_of_run(config: dict[str, Any]) -> str:
    """Return the name of a run in its checkpoints: a digest like :func:`identity`, but of fields that never grow."""
    return identity({name: value for name, value in config.items() if name not in GROWING_FIELDS})


def is_name_of(name: str, config: dict[str, Any]) -> bool:
    """Return whether a name in a checkpoint is the name of a config's run, also if the run has grown."""
    return name == name_of_run(config) or any(
        name == identity(config | {"num_epochs": num_epochs}) for num_epochs in range(1, MOST_EPOCHS_NAMED + 1)
    )


def grown(workdir: Path, config: Any) -> list[str]:
    """Return the fields in which a config asks for a larger or smaller run than the one in a directory."""
    there = read_config(workdir)
    return [name for name in GROWING_FIELDS if there.get(name) != config[name]]


def is_finished(workdir: Path, config: Any) -> bool:
    """Return whether a run is finished, with as many epochs and seeds as a config asks for."""
    if not (workdir / "results.json").exists():
        return False
    return not (workdir / "config.json").exists() or not grown(workdir, config)


def check_same(workdir: Path, config: dict[str, Any]) -> None:
    """Raise :class:`~dctps_jax.errors.UserError`, which names the differences, if a directory has another config.

    Fields that may grow may differ, see :mod:`dctps_jax.runs.growth`. A ``model.dtype`` of "auto" equals any other.
    """
    there = dict(flat_fields(_read_fields(workdir / "config.json", check_object, "is no config of a run")))
    found, asked = ADDED_FIELDS | there, ADDED_FIELDS | dict(flat_fields(config))
    free = free_fields(asked) | {name for name in GROWING_FIELDS if name in found}
    if asked.get("model.dtype") == "auto":  # a run that goes on keeps the type that it began with
        free.add("model.dtype")
    different = [
        f"{field} ({found.get(field, 'absent')!r} there, {asked.get(field, 'absent')!r} now)"
        for field in sorted(found.keys() | asked.keys())
        if field not in free and found.get(field) != asked.get(field)
    ]
    if different:
        raise UserError(
            f"--workdir {workdir} belongs to a run with another config: {some_of(different, MAX_SHOWN)}; use that "
            "config, or another directory"
        )
    _check_no_seed_is_left_out(workdir, found, asked)


def _check_no_seed_is_left_out(workdir: Path, found: dict[str, Any], asked: dict[str, Any]) -> None:
    had, wanted = found.get("num_seeds", 1), asked.get("num_seeds", 1)
    if had <= wanted:
        return
    begun = [seed for seed in range(asked["seed"], asked["seed"] + had) if (workdir / f"seed_{seed}").exists()]
    least = max(2, len(begun))
    if wanted < least:
        raise UserError(
            f"--workdir {workdir} holds {len(begun)} of {had} seeds, and config.num_seeds is {wanted}; ask for at "
            f"least {least}, or choose another directory"
        )


def _open_lock(workdir: Path) -> Any:
    # Opened for reading, too: opening a pipe only for writing would wait for a reader.
    return (workdir / ".lock").open("ab+", buffering=0)


def _try_lock(file: Any) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
