"""Checkpoints by Orbax: the newest two and the best, each with a digest that is verified before it is used."""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from dctps_jax.distributed.agreement import arrays_of_first, is_first, on_first
from dctps_jax.distributed.placing import place
from dctps_jax.errors import DiskFull, UserError
from dctps_jax.files import parse_json
from dctps_jax.runs.checkpoint_files import CONTENT, DESCRIPTION, Content, describe, encode, read_checkpoint
from dctps_jax.runs.damage import DAMAGED, Damaged
from dctps_jax.runs.one_file import OneFile
from dctps_jax.runs.packing import flatten
from dctps_jax.runs.workdir import is_name_of, name_of_run

KEPT = {"latest": 2, "best": 1, "kept": None}
# Part of the names that Orbax gives to checkpoints while it writes them; it removes what a kill left of them.
UNFINISHED = ".orbax-checkpoint-tmp"
# Ends the name of a checkpoint while another one of its step is written.
REPLACED = ".replaced"
# More than Orbax opens at once: two event loops with three each, and files.
FILE_HANDLES = 12

logger = logging.getLogger("dctps_jax")


class Saved(NamedTuple):
    """A sound checkpoint: its step, its arrays by name, and its record of the run, which is empty in format 2."""

    step: int
    arrays: Mapping[str, np.ndarray]
    record: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, ``latest/STEP`` (two), ``best/STEP`` (one) and ``kept/STEP`` below ``folder``.

    Orbax writes a checkpoint under a temporary name and renames it, so that a kill leaves the checkpoints before
    intact; the digest finds what a disk or a copy damaged later. A damaged checkpoint is moved to ``damaged/`` and
    passed over.
    """

    def __init__(self, folder: Path, config: dict[str, Any] | None = None):
        """Open the checkpoints of the run with a config, a JSON object; those that name another run are refused."""
        _check_file_handles()
        self.folder, self.config = folder, config
        self._managers: dict[str, ocp.CheckpointManager] = {}
        if is_first():
            for kind in KEPT:
                _put_back(folder / kind)

    def save(self, kind: str, step: int, tree: Any, record: Mapping[str, Any] | None = None) -> None:
        """Write ``tree`` as the "best", a "latest" or a "kept" checkpoint, of ``step``; return when it is on the disk.

        ``record`` is what it says of the run besides, a JSON object. Where it can't be written, the checkpoints before
        are kept. Of several processes the first one writes. Raises :class:`~dctps_jax.errors.DiskFull`, and ``OSError``
        for other reasons of the system.
        """
        if not is_first():
            return
        _check_file_handles()
        record = {**({} if self.config is None else {"run": name_of_run(self.config)}), **(record or {})}
        data = encode(Content({name: np.asarray(leaf) for name, leaf in flatten(tree).items()}, record))
        files = {CONTENT: data, DESCRIPTION: json.dumps(describe(step, data)).encode()}
        arguments = ocp.args.Composite(
            **{path.parent.name: OneFile(path.name, content) for path, content in files.items()}
        )
        try:
            manager = self._manager(kind)
            with _put_aside(self.folder / kind / str(step), manager):
                saved = manager.save(step, args=arguments, force=True)
                manager.wait_until_finished()
        except BaseException as error:
            _remove_unfinished(self.folder / kind)
            if isinstance(error, OSError) and DiskFull.is_reason(error):
                raise DiskFull(
                    f"{self.folder / kind} has no room for the checkpoint of step {step}, {len(data):,} bytes; what "
                    "was saved before is kept: make room there, and give the same command again"
                ) from error
            raise
        if not saved:
            raise RuntimeError(f"{self.folder / kind / str(step)} could not be written")

    def newest(self, kind: str) -> Saved | None:
        """Return the newest sound checkpoint among the "latest" or the "best", or None without one.

        Damaged ones are moved to ``damaged/`` with a warning. Raises :class:`~dctps_jax.errors.UserError` for a
        checkpoint of another run, or of a format that this version does not read. An error that is no damage is passed
        on, and nothing is moved.
        """
        damages: dict[int, Damaged] = {}
        newest = None
        for step in sorted(steps_in(self.folder / kind), reverse=True):
            try:
                newest = Saved(step, *read_checkpoint(self.folder / kind / str(step)))
                break
            except Damaged as damage:
                damages[step] = damage
        if newest is not None:
            _check_run(newest, self.folder / kind, self.config)
        for step, damage in damages.items():
            source = self.folder / kind / str(step)
            logger.warning("checkpoint %s is damaged and passed over (%s)", source, damage)
            set_aside(source, self.folder / DAMAGED, f"{kind}_{step}")
        return newest

    def newest_for_all(self, kind: str) -> Saved | None:
        """Return :meth:`newest` in all processes of a run: the first one reads, and sends the others what it found."""
        if jax.process_count() == 1:
            return self.newest(kind)
        saved = self.newest(kind) if is_first() else None
        head = on_first(lambda: None if saved is None else [saved.step, saved.record])
        return None if head is None else Saved(head[0], arrays_of_first(saved.arrays if saved else None), head[1])

    def close(self) -> None:
        for manager in self._managers.values():
            manager.close()

    def _manager(self, kind: str) -> ocp.CheckpointManager:
        if kind not in self._managers:
            (self.folder / kind).mkdir(parents=True, exist_ok=True)
            _rename_damaged_notes(self.folder / kind)
            options = ocp.CheckpointManagerOptions(
                max_to_keep=KEPT[kind],
                create=False,  # which goes with active_processes
                cleanup_tmp_directories=True,
                enable_async_checkpointing=False,
                # The first process writes by itself: the others need not come to its barriers.
                multiprocessing_options=ocp.options.MultiprocessingOptions(active_processes={0}),
            )
            self._managers[kind] = ocp.CheckpointManager((self.folder / kind).absolute(), options=options)
        return self._managers[kind]


def _rename_damaged_notes(folder: Path) -> None:
    """Rename damaged notes of Orbax on its checkpoints, which it reads when it starts and can do without.

    Orbax 0.12.8 ends with a RecursionError where their JSON is nested too deeply: ``test_damaged_notes_of_orbax``.
    """
    for step in steps_in(folder):
        notes = folder / str(step) / "_CHECKPOINT_METADATA"
        if notes.is_file():
            try:
                parse_json(notes.read_bytes())
            except ValueError:
                notes.rename(notes.with_name(f"{notes.name}.damaged"))


def as_tree(saved: Saved, template: Any, source: Path) -> Any:
    """Return the arrays of a checkpoint shaped and placed like ``template``, a dict of trees.

    They stay on the host where an abstract array of the template has no sharding. Other trees of the checkpoint are
    ignored. Raises :class:`~dctps_jax.errors.UserError` where they are not the arrays of such a tree.
    """
    wanted = flatten(template)
    found = {name: array for name, array in saved.arrays.items() if name.split("/")[0] in template}
    if _shapes(found) != _shapes(wanted):
        raise UserError(
            f"{source} holds checkpoints of another network, optimiser or version of dctps_jax; go on with what "
            "wrote them, or choose another directory"
        )
    placed = [
        found[name] if leaf.sharding is None else place(found[name], leaf.sharding) for name, leaf in wanted.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(template), placed)


def _check_run(saved: Saved, folder: Path, config: dict[str, Any] | None) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` for a checkpoint in ``folder`` that names another run.

    Older checkpoints name none.
    """
    named = saved.record.get("run")
    if named and config is not None and not is_name_of(named, config):
        raise UserError(
            f"{folder / str(saved.step)} is a checkpoint of another run; put back what was there, or move it away"
        )


def read_arrays(folder: Path, kind: str, config: dict[str, Any] | None = None) -> tuple[int, dict[str, np.ndarray]]:
    """Return (step, arrays by path) of a run's newest "latest" or "best" checkpoint; see :func:`read_saved`."""
    saved = read_saved(folder, kind, config)
    return saved.step, dict(saved.arrays)


def read_saved(folder: Path, kind: str, config: dict[str, Any] | None = None, step: int | None = None) -> Saved:
    """Return a run's checkpoint of ``step``, or its newest one, whatever it trained.

    Nothing is moved. Raises :class:`~dctps_jax.errors.UserError` where there is none, it is damaged, or it names
    another run than that of ``config``.
    """
    steps = steps_in(folder / kind)
    if not steps:
        raise UserError(f"{folder / kind} holds no checkpoint; give the directory of a run that has saved one")
    step = max(steps) if step is None else step
    try:
        content = read_checkpoint(folder / kind / str(step))
    except Damaged as damage:
        raise UserError(
            f"{folder / kind / str(step)} is damaged ({damage}); take another checkpoint or run"
        ) from damage
    saved = Saved(step, *content)
    _check_run(saved, folder / kind, config)
    return saved


def last_is_lost(workdir: Path, step: int, end: int) -> UserError:
    """Return the error for a finished run of ``end`` steps whose newest checkpoint is of ``step``."""
    return UserError(
        f"{workdir / 'checkpoints' / 'latest'} ends at step {step}, but the run at step {end}; put back its last "
        "checkpoint, or take another run"
    )


def steps_in(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in a folder, ascending; none where there is no folder."""
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
    except FileNotFoundError:
        return []
    except NotADirectoryError as error:
        raise UserError(
            f"{folder} is, or lies below, a file, but must be a folder of checkpoints; move the file away"
        ) from error
    return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)


def set_aside(path: Path, folder: Path, name: str) -> Path:
    """Move a file or a folder into ``folder`` as ``name``, with a number where that is taken; return where it is."""
    target, number = folder / name, 1
    while target.exists():
        number += 1
        target = folder / f"{name}_{number}"
    folder.mkdir(exist_ok=True)
    shutil.move(path, target)
    return target


@contextlib.contextmanager
def _put_aside(folder: Path, manager: ocp.CheckpointManager) -> Iterator[None]:
    """Make way for a checkpoint of a step that has one: where the block fails, the old one comes back.

    A run that was stopped while it evaluated, or killed between two checkpoints, comes to the same step again.
    """
    if int(folder.name) not in manager.all_steps():
        yield
        return
    folder.rename(folder.with_name(folder.name + REPLACED))
    manager.reload()
    try:
        yield
    finally:
        _put_back(folder.parent)


def _put_back(folder: Path) -> None:
    """Undo what :func:`_put_aside` did where no other checkpoint took the place, also in a process that was killed."""
    if folder.is_dir():
        for aside in [entry for entry in folder.iterdir() if entry.name.endswith(REPLACED)]:
            place = aside.with_name(aside.name.removesuffix(REPLACED))
            if place.exists():
                shutil.rmtree(aside)
            else:
                aside.rename(place)


def _check_file_handles() -> None:
    """Raise ``OSError`` if too few files may be opened. Orbax would fail in the middle, with a traceback a thread."""
    with contextlib.ExitStack() as stack:
        for _ in range(FILE_HANDLES):
            stack.enter_context(open(os.devnull, "rb"))


def _remove_unfinished(folder: Path) -> None:
    """Remove what a failed save left: a full disk has no room for it."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if UNFINISHED in entry.name:
                shutil.rmtree(entry, ignore_errors=True)


def _shapes(arrays: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], str]]:
    return {name: (tuple(array.shape), str(array.dtype)) for name, array in arrays.items()}
