"""Read safetensors files, and compute the digest that shows whether a file is as it was written."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dctps_jax.errors import UserError, first_line
from dctps_jax.runs.packing import digest


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


def digest_of_file(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """Return a SHA-256 over the tensors and all metadata except the digest itself."""
    header = {name: text for name, text in metadata.items() if name != "digest"}
    return hashlib.sha256(json.dumps([digest(tensors), header], sort_keys=True).encode()).hexdigest()
