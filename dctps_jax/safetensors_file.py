"""Write and read safetensors files with a digest, which shows whether a file is as it was written."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dctps_jax.errors import UserError, first_line
from dctps_jax.files import write_whole
from dctps_jax.runs.checkpoint_files import NO_MATCH
from dctps_jax.runs.packing import digest


def write_checked(
    file: Path, tensors: Mapping[str, np.ndarray], name: str, version: int, metadata: Mapping[str, str]
) -> None:
    """Write tensors and metadata, with the name and version of their format and a digest, whole or not at all."""
    from safetensors.numpy import save

    tensors = {key: np.asarray(array, order="C") for key, array in tensors.items()}
    metadata = {"format": name, "format_version": str(version), **metadata}
    write_whole(file, save(tensors, metadata | {"digest": digest_of_file(tensors, metadata)}))


def read_checked(
    file: Path, name: str, newest: int, writer: str, remedy: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return tensors and metadata of a file that :func:`write_checked` wrote for the function ``writer``.

    Raises :class:`~dctps_jax.errors.UserError`, which ends with ``remedy`` where it helps, for a file that is missing,
    damaged, foreign or of a newer format than ``newest``.
    """
    if not file.is_file():
        raise UserError(f"{file} {'is no file' if file.exists() else 'does not exist'}; {remedy}")
    tensors, metadata = read_safetensors(file, remedy)
    check_format(file, metadata, name, newest, writer)
    check_digest(file, metadata, digest_of_file(tensors, metadata), remedy)
    return tensors, metadata


def read_safetensors(file: Path, remedy: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return tensors and metadata of a file that exists.

    Raises :class:`~dctps_jax.errors.UserError`, which ends with ``remedy``, for a foreign or truncated file.
    """
    from safetensors import safe_open

    file.open("rb").close()  # safetensors reports any file that it cannot open as missing
    try:
        with safe_open(file, framework="numpy") as opened:
            metadata = opened.metadata() or {}
            return {name: opened.get_tensor(name) for name in opened.keys()}, metadata  # noqa: SIM118 (it is no dict)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # safetensors raises its own kind for a foreign or truncated file
        raise UserError(f"{file} is no safetensors file, or a truncated one ({first_line(error)}); {remedy}") from error


def check_format(file: Path, metadata: Mapping[str, str], name: str, newest: int, writer: str) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` unless ``writer`` wrote a file, in a format that this version reads.

    ``name`` is the format's name in the metadata, and ``newest`` its newest version.
    """
    if metadata.get("format") != name:
        raise UserError(f"{file} is a safetensors file that {writer} did not write; give one that it wrote")
    version = version_of(metadata)
    if version > newest:
        raise UserError(
            f"{file} was written by a newer dctps_jax (format {version}, this one knows {newest}); update dctps_jax"
        )


def version_of(metadata: Mapping[str, str]) -> int:
    """Return the version of a format that metadata name, 0 for none."""
    text = metadata.get("format_version", "")
    return int(text[:9]) if text.isdecimal() else 0  # Python does not read thousands of digits


def check_digest(file: Path, metadata: Mapping[str, str], found: str, remedy: str) -> None:
    """Raise :class:`~dctps_jax.errors.UserError`, which ends in ``remedy``, if a file's digest is not ``found``."""
    if metadata.get("digest") != found:
        raise UserError(f"{file} is damaged: {NO_MATCH}; {remedy}")


def digest_of_file(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """Return a SHA-256 over the tensors and all metadata except the digest itself."""
    header = {name: text for name, text in metadata.items() if name != "digest"}
    return hashlib.sha256(json.dumps([digest(tensors), header], sort_keys=True).encode()).hexdigest()
