"""Read and write ``.npz`` files: whole files only, and one sentence if a file is damaged or foreign."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dctps_jax.errors import SPENT_HANDLES, UserError, first_line
from dctps_jax.files import write_whole


def read_npz(path: Path, content: str) -> dict[str, np.ndarray]:
    """Return the arrays of a file; raise :class:`~dctps_jax.errors.UserError` if it is missing, damaged or foreign.

    ``content`` says in the message what the file should hold.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; it should hold {content}")
    try:
        with path.open("rb") as file, np.load(file) as archive:  # np.load itself leaves a damaged file open
            arrays = {name: archive[name] for name in archive}
    except Exception as error:  # a damaged file makes zipfile, zlib, tokenize and numpy raise whatever they meet
        if isinstance(error, OSError) and error.errno in SPENT_HANDLES:
            raise
        if not isinstance(error, OSError) and not zipfile.is_zipfile(path):
            raise UserError(
                f"{path} is no .npz file, or a truncated one; give a file with {content}, or copy it again"
            ) from error
        raise UserError(f"{path} cannot be read as .npz with {content} ({first_line(error)}); copy it again") from error
    foreign = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
    if foreign:
        raise UserError(f"{path} holds {foreign[0]}, which is no array; it should hold {content}")
    return arrays


def write_npz(path: Path, arrays: Mapping[str, np.ndarray], *, compress: bool = False) -> None:
    """Write arrays to a file, whole or not at all. The same arrays give the same bytes.

    ``np.savez`` would not do: it takes the names as arguments, and has arguments of its own, e.g. ``file``.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array))
    write_whole(path, content.getvalue())
