"""The python archives of CIFAR: pickles of dictionaries, read by an unpickler that cannot call other code.

The unpickler knows three names only, and maps them to classes of this module. So a pickle can make arrays of bytes and
built-in containers, and nothing else. numpy's own functions are excluded, since a forged type or array would make them
read memory outside of the array.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from dctps_jax.data.reading import parsing
from dctps_jax.errors import UserError

_PIXELS = 3 * 32 * 32


class _Type:
    """Stands in for numpy's dtype. Arrays of other types than bytes are refused."""

    def __init__(self, name: str, *_: Any):
        if name not in ("u1", "|u1", "uint8"):
            raise pickle.UnpicklingError(f"it holds an array of {name!r}, not of uint8")

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """Stands in for numpy's array: its state is a version, a shape, a type, an order and the bytes."""

    def __init__(self, *_: Any):
        self.value = np.zeros(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, _, in_columns, content = state
        values = np.frombuffer(content, np.uint8)
        self.value = values.reshape(shape, order="F" if in_columns else "C")


def _encode(text: str, encoding: str) -> bytes:
    """Return bytes as Python 3 writes them in the old format of Python 2."""
    return text.encode("latin1")


_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in _NAMES:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}, which no archive of CIFAR needs")
        return _NAMES[module_name, global_name]


def unpickle(content: bytes, where: Path, advice: str) -> dict[str, Any]:
    """Return the dictionary in a file of the archive, which holds arrays of bytes, lists and texts.

    Raises UserError, which ends with ``advice``, if the file holds something else, or asks for any other call.
    """
    with parsing(where, advice):
        found = _Unpickler(io.BytesIO(content), encoding="latin1").load()
        if not isinstance(found, dict):
            raise ValueError("it is no dictionary")
        texts = {_as_text(name): value for name, value in found.items()}
        return {name: value.value if isinstance(value, _Array) else value for name, value in texts.items()}


def as_binary(contents: dict[str, bytes], source: Path, label_keys: tuple[str, ...], advice: str) -> dict[str, bytes]:
    """Return the files of a python archive as files of the binary one, by the same names without their endings.

    ``label_keys`` are the names of an image's labels, in the order of the binary records. The last of them also gives
    the name of the list of classes. Raises UserError for a file that is not a batch of images.
    """
    binary = {}
    for file, content in contents.items():
        where = source / file
        found = unpickle(content, where, advice)
        if (names := found.get(f"{label_keys[-1].removesuffix('s')}_names")) is not None:
            binary[file] = "\n".join(map(_as_text, names)).encode()
            continue
        pixels, columns = found.get("data"), [found.get(key) for key in label_keys]
        if not isinstance(pixels, np.ndarray) or pixels.shape[1:] != (_PIXELS,):
            raise UserError(f"{where} holds no images of {_PIXELS:,} bytes; {advice}")
        if not all(_are_labels(labels, len(pixels)) for labels in columns):
            raise UserError(f"{where} holds no list of {len(pixels)} numbers for {' and '.join(label_keys)}; {advice}")
        binary[file] = np.hstack([np.array(columns, np.uint8).T, pixels]).tobytes()
    return binary


def _as_text(name: Any) -> str:
    return name.decode("latin1") if isinstance(name, bytes) else str(name)


def _are_labels(labels: Any, count: int) -> bool:
    are_bytes = isinstance(labels, list) and all(type(label) is int and 0 <= label < 256 for label in labels)
    return are_bytes and len(labels) == count
