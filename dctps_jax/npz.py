"""Read and write `.npz` files: whole files only, and one sentence where one is damaged or foreign."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dctps_jax.errors import SPENT_HANDLES, UserError, first_line
from dctps_jax.files import write_whole


def read_npz(path: Path, content: str) -> dict[str, np.ndarray]:
    """Return the arrays of a file; a missing, damaged or foreign one is a :class:`~dctps_jax.errors.UserError`.

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
        raise UserError(f"{path} cannot be read as .npz with {content} ({first_line(error)}); copy it again") from error
    foreign = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
    if foreign:
        raise UserError(f"{path} holds {foreign[0]}, which is no array; it should hold {content}")
    return arrays


def write_npz(path: Path, arrays: Mapping[str, np.ndarray], *, compress: bool = False) -> None:
    """Write arrays to a file, whole or not at all."""
    content = io.BytesIO()
    save = np.savez_compressed if compress else np.savez
    save(content, **dict(arrays))  # pyright: ignore[reportArgumentType]
    write_whole(path, content.getvalue())
