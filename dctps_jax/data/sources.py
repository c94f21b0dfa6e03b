"""The table of all data sources, and ``load``, which picks one by the name in the config field ``data.name``."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dctps_jax.data.array_records import find_array_record_folder
from dctps_jax.data.builtin import load_digits, make_synthetic
from dctps_jax.data.cifar import load_cifar
from dctps_jax.data.dataset import MAX_PIXELS, Dataset, Options
from dctps_jax.data.encoded import Encoded
from dctps_jax.data.image_folder import find_image_folder
from dctps_jax.data.parquet_folder import find_parquet_folder
from dctps_jax.data.reading import cache_folder, unreadable
from dctps_jax.data.tfds_source import find_tfds_folder
from dctps_jax.data.tiny_imagenet import load_tiny_imagenet
from dctps_jax.data.user_images import load_npz, load_own
from dctps_jax.data.webdataset_folder import find_webdataset_folder
from dctps_jax.errors import UserError, did_you_mean
from dctps_jax.field import Allowed
from dctps_jax.user_functions import IMPORT_PATH, is_import_path


class Source(NamedTuple):
    """A data set: the function that reads it, and the size of its images (None: any, ``data.image_size``).

    ``load`` reads the images into arrays. ``find`` is there instead for a source that reads any folder of image files:
    it finds the files of ``data.dir``, which can be decoded at once or while training.
    """

    load: Callable[[Options], Dataset] | None = None
    image_size: int | None = None
    find: Callable[[Options], Encoded] | None = None


SOURCES = {
    "digits": Source(load_digits, image_size=32),
    "synthetic": Source(make_synthetic),
    "cifar10": Source(functools.partial(load_cifar, "cifar10"), image_size=32),
    "cifar100": Source(functools.partial(load_cifar, "cifar100"), image_size=32),
    "tiny_imagenet": Source(load_tiny_imagenet, image_size=64),
    "image_folder": Source(find=find_image_folder),
    "parquet_folder": Source(find=find_parquet_folder),
    "tfds_folder": Source(find=find_tfds_folder),
    "array_record_folder": Source(find=find_array_record_folder),
    "webdataset_folder": Source(find=find_webdataset_folder),
}


def reads_any_folder(name: str) -> bool:
    """Return whether a source reads whatever lies in ``data.dir``, which therefore says what the data are."""
    return name in SOURCES and SOURCES[name].find is not None


def is_own(name: str) -> bool:
    """Return whether ``name`` stands for data of the user's own: an import path, or the path of an ``.npz`` file."""
    return is_import_path(name) or name.endswith(".npz")


OWN = Allowed(is_own, f"{IMPORT_PATH.words}, or the path of an .npz file")


def load(
    name: str,
    *,
    dir: str = "",
    cache_dir: str = "",
    image_size: int = 0,
    download: bool = True,
    max_pixels: int = MAX_PIXELS,
    channels: int = 3,
    seed: int = 0,
    fit: str = "squash",
    crop: str = "padded",
    max_decoded_bytes: float = math.inf,
) -> Dataset:
    """Read the data set ``name`` (a key of ``SOURCES``, or the user's own, see :func:`is_own`) into a ``Dataset``.

    - ``dir``: the folder with its files. "" is dctps_jax/data in the user's cache; a folder source needs one.
    - ``cache_dir``: the folder for decoded copies, see ``dctps_jax.data.cache``.
    - ``image_size``: pixels of each side, which synthetic data and folder sources can choose. 0 is the source's own.
    - ``download``: fetch official archives that are missing into ``dir``.
    - ``max_pixels``: an image file with more pixels is refused before it is decoded.
    - ``channels``: 1 makes the images of a folder source grey.
    - ``seed``: is passed to a function of the user's own.
    - ``fit``: how images of another shape get ``image_size``.
    - ``max_decoded_bytes``: a folder source whose images would take more is decoded while it is read, see
      ``dctps_jax.data.encoded.FileImages``. ``crop`` says how these images are cropped for training.

    Raises UserError for an unknown name, a size that the source cannot give, every missing or damaged file, and memory
    that runs out.
    """
    if channels != 3 and not reads_any_folder(name):
        raise UserError(
            f"config.data.channels is {channels}, but '{name}' keeps its own channels; leave it at 3, it is for "
            "folders of image files"
        )
    if is_import_path(name):
        return load_own(name, dir, image_size, seed)
    if name.endswith(".npz"):
        if image_size:
            raise UserError(
                f"config.data.image_size is {image_size}, but the images of '{name}' keep their size; leave it at 0, "
                "or resize them in the file"
            )
        return load_npz(_folder("config.data.name", name))
    if name not in SOURCES:
        hint = did_you_mean(name, SOURCES)
        raise UserError(f"config.data.name is {name!r}{hint}, but must be one of {', '.join(SOURCES)}")
    source = SOURCES[name]
    if image_size < 0:
        raise UserError(
            f"config.data.image_size is {image_size}, but must be 0 (the source's own size) or a positive size"
        )
    if image_size**2 > max_pixels:
        raise UserError(
            f"config.data.image_size is {image_size}, which makes more than the {max_pixels:,} pixels of "
            "config.data.max_pixels; lower it, or raise config.data.max_pixels"
        )
    if source.image_size is not None and image_size not in (0, source.image_size):
        raise UserError(
            f"config.data.image_size is {image_size}, but '{name}' has images of {source.image_size} pixels only; set "
            f"it to 0 or {source.image_size}"
        )
    if source.find is not None and not dir:
        raise UserError(
            f"config.data.dir is empty, but '{name}' needs it; set it to the folder that holds train and test"
        )
    folder = _folder("config.data.dir", dir or str(cache_folder("data")))
    decoded = _folder("config.data.cache_dir", cache_dir) if cache_dir else None
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"config.data.dir is {folder}, which is a file; give the folder that holds it")
        options = Options(folder, decoded, image_size, download, max_pixels, channels, seed, fit, crop)
        if source.find is None:
            assert source.load is not None
            return source.load(options)
        encoded = source.find(options)
        is_large = max_decoded_bytes < math.inf and encoded.num_bytes(options) > max_decoded_bytes
        return encoded.decoded_when_read(options) if is_large else encoded.decoded_once(options)
    except OSError as error:  # what cannot even be looked up, for want of permissions or of a working disk
        advice = "make it readable, or set config.data.dir to another folder"
        raise unreadable(error.filename or folder, error, advice) from error
    except MemoryError as error:
        raise UserError(
            f"config.data.name is '{name}', whose decoded images do not fit into memory ({error}); free some memory, "
            "or use fewer or smaller images"
        ) from error


def _folder(field: str, value: str) -> Path:
    try:
        if "\0" in value:
            raise ValueError("it has a NUL byte")
        return Path(value).expanduser()
    except (RuntimeError, ValueError) as error:  # a "~name" of nobody is a RuntimeError
        raise UserError(f"{field} is {value!r}, which is no path ({error}); set it to one") from error
