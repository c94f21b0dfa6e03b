"""The files of one checkpoint: write its content, and read it back."""

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dctps_jax.errors import UserError
from dctps_jax.runs import checkpoint_format_2
from dctps_jax.runs.damage import Damaged, decoding, read_bytes, read_tree
from dctps_jax.runs.packing import digest, pack, unpack

FORMAT_VERSION = 3
DESCRIPTION = Path("meta", "metadata")
CONTENT = Path("state", "content.zip")
# If deflate does not shrink the beginning of a plane of bytes to this share, the plane is stored as it is: trying the
# whole plane takes long.
WORTHWHILE, SAMPLE_BYTES = 0.9, 1 << 16
NO_MATCH = "its digest does not match its content"


class Content(NamedTuple):
    """What a checkpoint holds: ``arrays`` by name, and a ``record`` of the run, a JSON object (empty in format 2)."""

    arrays: Mapping[str, np.ndarray]
    record: dict[str, Any]


def encode(content: Content) -> bytes:
    """Return the content of a checkpoint as a zip file: planes of bytes, an index, the record.

    Members have no date: equal contents give equal files.
    """
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, array in pack(content.arrays).items():
            planes = array if array.ndim == 2 else [array]
            for number, plane in enumerate(planes):
                sample = plane[:SAMPLE_BYTES].tobytes()
                shrinks = len(zlib.compress(sample, 1)) < WORTHWHILE * len(sample)
                method = zipfile.ZIP_DEFLATED if shrinks else zipfile.ZIP_STORED
                archive.writestr(zipfile.ZipInfo(f"{name}/{number}"), plane.tobytes(), method, compresslevel=1)
        archive.writestr(zipfile.ZipInfo("record.json"), json.dumps(content.record), zipfile.ZIP_DEFLATED)
    return data.getvalue()


def decode(data: bytes) -> Content:
    """Return the content that :func:`encode` wrote into a zip file."""
    planes: dict[str, list[np.ndarray]] = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        record = json.loads(archive.read("record.json"))
        for member in archive.namelist():
            if member != "record.json":
                planes.setdefault(member.split("/")[0], []).append(np.frombuffer(archive.read(member), np.uint8))
    packed = {name: found[0] if name == "index" else np.stack(found) for name, found in planes.items()}
    return Content(unpack(packed), record)


def describe(step: int, data: bytes) -> dict[str, Any]:
    """Return the description beside the encoded content of a checkpoint: format, step, digests."""
    meta = {"format_version": FORMAT_VERSION, "step": step, "digest": hashlib.sha256(data).hexdigest()}
    return meta | {"check": _check_of(meta)}


def read_checkpoint(folder: Path) -> Content:
    """Return the content of the checkpoint in ``folder``, whose name is the step.

    Raises :class:`Damaged`, and :class:`~dctps_jax.errors.UserError` for a format that this version does not read.
    Other errors are not damage and pass through, e.g. a missing permission.
    """
    meta = _read_description(folder)
    if meta["format_version"] not in READERS:
        raise UserError(
            f"{folder} is of format {meta['format_version']}, but this version of dctps_jax reads the formats "
            f"{' and '.join(map(str, READERS))} only; go on with the version that wrote it"
        )
    return READERS[meta["format_version"]](folder, meta)


def _read_description(folder: Path) -> dict[str, Any]:
    text = read_bytes(folder / DESCRIPTION)
    with decoding("its description is damaged"):
        meta = json.loads(text)
        if meta.pop("check") != _check_of(meta):
            raise Damaged("its description is damaged")
    if str(meta["step"]) != folder.name:
        raise Damaged(f"it is the checkpoint of step {meta['step']}")
    return meta


def _read_format_2(folder: Path, meta: dict[str, Any]) -> Content:
    files = read_tree(folder / "state")
    with decoding("its content is damaged"):
        arrays = checkpoint_format_2.read_arrays(files)
    if digest(arrays) != meta["digest"]:
        raise Damaged(NO_MATCH)
    return Content(arrays, {})


def _read_format_3(folder: Path, meta: dict[str, Any]) -> Content:
    data = read_bytes(folder / CONTENT)
    if hashlib.sha256(data).hexdigest() != meta["digest"]:
        raise Damaged(NO_MATCH)
    return decode(data)


READERS: dict[int, Callable[[Path, dict[str, Any]], Content]] = {2: _read_format_2, 3: _read_format_3}


def _check_of(meta: Mapping[str, Any]) -> str:
    """Return a SHA-256 over a description, which tells a damaged description from one of another format."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
