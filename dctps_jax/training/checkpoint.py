"""Checkpoints by Orbax: the newest two and the best, each with a digest that is verified before it is used."""

import hashlib
import json
import logging
import math
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from dctps_jax.errors import UserError
from dctps_jax.npz import first_line

FORMAT_VERSION = 2
DIFFERENCES = ("int32",)

logger = logging.getLogger("dctps_jax")


class Checkpoints:
    """The checkpoints of one run, ``latest/STEP`` (two) and ``best/STEP`` (one) below ``folder``.

    A checkpoint is a flat dict of arrays, ``"params/layer1/0/conv1/kernel"``, packed into one array a dtype, beside JSON with
    the format version and a digest. Orbax writes under a temporary name and renames, so that a kill leaves the checkpoints before intact; the
    digest finds what a disk or a copy damaged later. Damaged checkpoints are moved to ``damaged/`` and passed over.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._managers = {kind: _manager(folder / kind, keep) for kind, keep in (("latest", 2), ("best", 1))}

    def save(self, kind: str, step: int, tree: Any) -> None:
        """Write ``tree`` as the checkpoint of ``step`` among the "latest" or as the "best"; return when it is on disk."""
        manager = self._managers[kind]
        if step in manager.all_steps():
            # Left by a run that was killed before it could go on from here; the same numbers come again.
            manager.delete(step)
        arrays = flatten(tree)
        meta = {
            "format_version": FORMAT_VERSION,
            "step": step,
            "structure": structure_of(tree),
            "digest": digest(arrays),
        }
        meta["check"] = check_of(meta)
        saved = manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(pack(arrays)), meta=ocp.args.JsonSave(meta)),
            force=True,
        )
        manager.wait_until_finished()
        if not saved:
            raise RuntimeError(f"{self.folder / kind / str(step)} could not be written")

    def restore(self, kind: str, template: Any) -> tuple[int, Any] | None:
        """Return (step, tree) of the newest sound checkpoint, shaped and placed like ``template``, or None without one."""
        manager = self._managers[kind]
        for step in sorted(manager.all_steps(), reverse=True):
            try:
                return step, self._load(manager, step, template)
            except (UserError, MemoryError, PermissionError):
                raise
            except Exception as error:  # whatever a damaged file makes Orbax raise
                self._set_aside(kind, step, error)
        return None

    def steps(self) -> list[int]:
        """Return the steps of the latest checkpoints, ascending."""
        return sorted(self._managers["latest"].all_steps())

    def forget_after(self, step: int) -> None:
        """Delete the latest checkpoints of later steps than ``step``."""
        for later in self.steps():
            if later > step:
                self._managers["latest"].delete(later)

    def _load(self, manager: ocp.CheckpointManager, step: int, template: Any) -> Any:
        meta = _description(manager, step, self.folder)
        if meta["structure"] != structure_of(template):
            raise UserError(
                f"{self.folder} holds checkpoints of another network, optimiser or version of dctps_jax; go on with what "
                "wrote them, or choose another directory"
            )
        arrays = _content(manager, step, meta)
        placed = [jax.device_put(arrays[name], leaf.sharding) for name, leaf in flatten(template).items()]
        return jax.tree.unflatten(jax.tree.structure(template), placed)

    def _set_aside(self, kind: str, step: int, error: Exception) -> None:
        source = self.folder / kind / str(step)
        logger.warning("checkpoint %s is damaged and passed over (%s)", source, first_line(error))
        target = self.folder / "damaged" / f"{kind}_{step}"
        number = 1
        while target.exists():
            number += 1
            target = self.folder / "damaged" / f"{kind}_{step}_{number}"
        target.parent.mkdir(exist_ok=True)
        shutil.move(source, target)
        self._managers[kind].reload()

    def close(self) -> None:
        for manager in self._managers.values():
            manager.close()


def read_arrays(folder: Path, kind: str) -> tuple[int, dict[str, np.ndarray]]:
    """Return (step, arrays by path) of the newest checkpoint among the "latest" or the "best" of a run, whatever it trained.

    Raises :class:`~dctps_jax.errors.UserError` where there is none, or it is damaged.
    """
    if not any((folder / kind).glob("[0-9]*")):
        raise UserError(f"{folder / kind} holds no checkpoint; give the directory of a run that has saved one")
    manager = _manager(folder / kind, None)
    try:
        step = max(manager.all_steps())
        return step, _content(manager, step, _description(manager, step, folder))
    except (UserError, MemoryError, PermissionError):
        raise
    except Exception as error:  # whatever a damaged file makes Orbax raise
        raise UserError(f"{folder / kind} is damaged ({first_line(error)}); take another checkpoint or run") from error
    finally:
        manager.close()


def _description(manager: ocp.CheckpointManager, step: int, folder: Path) -> dict[str, Any]:
    meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    if meta.pop("check") != check_of(meta):
        raise ValueError("its description is damaged")
    if meta["format_version"] > FORMAT_VERSION:
        raise UserError(
            f"{folder} was written by a newer dctps_jax (format {meta['format_version']}, this one knows {FORMAT_VERSION}); "
            "update dctps_jax"
        )
    return meta


def _content(manager: ocp.CheckpointManager, step: int, meta: dict[str, Any]) -> dict[str, np.ndarray]:
    arrays = unpack(manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"])
    if digest(arrays) != meta["digest"]:
        raise ValueError("its digest does not match its content")
    return arrays


def flatten(tree: Any) -> dict[str, jax.Array]:
    """Return the leaves of ``tree`` by path, ``"opt_state/0/mu/fc/kernel"``, in the tree's own order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def pack(arrays: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """Return the arrays as one array of bytes a dtype and an index: hundreds of small files would outweigh their content.

    The bytes stand plane by plane, all lowest bytes of the numbers first, since the planes of signs and exponents compress
    and those of mantissas don't. Positions ascend, so that their differences are kept. The index is zlib's JSON of names,
    dtypes and shapes in order.
    """
    index = [[name, str(array.dtype), list(array.shape)] for name, array in arrays.items()]
    groups: dict[str, list[np.ndarray]] = {}
    for array in arrays.values():
        groups.setdefault(str(array.dtype), []).append(np.asarray(array).ravel())
    packed = {}
    for dtype, group in groups.items():
        together = np.concatenate(group)
        if dtype in DIFFERENCES:
            together = np.diff(together, prepend=together.dtype.type(0))
        packed[dtype] = np.ascontiguousarray(together.view(np.uint8).reshape(-1, together.dtype.itemsize).T)
    packed["index"] = np.frombuffer(zlib.compress(json.dumps(index).encode()), np.uint8)
    return packed


def unpack(packed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays that :func:`pack` packed."""
    index = json.loads(zlib.decompress(np.asarray(packed["index"]).tobytes()))
    numbers = {}
    for dtype, planes in packed.items():
        if dtype != "index":
            numbers[dtype] = np.ascontiguousarray(np.asarray(planes).T).view(jnp.dtype(dtype)).ravel()
            if dtype in DIFFERENCES:
                numbers[dtype] = np.cumsum(numbers[dtype], dtype=dtype)
    arrays, taken = {}, dict.fromkeys(numbers, 0)
    for name, dtype, shape in index:
        start, size = taken[dtype], math.prod(shape)
        arrays[name] = numbers[dtype][start : start + size].reshape(shape)
        taken[dtype] += size
    return arrays


def check_of(meta: dict[str, Any]) -> str:
    """Return a SHA-256 over a checkpoint's description, which tells a damaged one from a foreign one."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def structure_of(tree: Any) -> str:
    """Return a SHA-256 over names, dtypes and shapes of the leaves."""
    lines = sorted(f"{name} {array.dtype} {array.shape}" for name, array in flatten(tree).items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def digest(arrays: Mapping[str, jax.Array | np.ndarray]) -> str:
    """Return a SHA-256 over names, dtypes, shapes and bytes."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        sha.update(f"{name} {array.dtype} {array.shape}\n".encode())
        sha.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def _manager(folder: Path, keep: int | None) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=True, cleanup_tmp_directories=True, enable_async_checkpointing=False
    )
    return ocp.CheckpointManager(folder.absolute(), options=options)
