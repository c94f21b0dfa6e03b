"""What every data source is asked for and hands over: `Options`, `Decoded` while it is read, `Dataset`."""

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dctps_jax.errors import UserError

_ROWS = 1024
MAX_PIXELS = 2**25  # of an image file: photographs of 24 megapixels pass

Channels = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled square RGB images in a training and a test part, as they are stored: no scaling, no augmentation.

    `train_images` and `test_images` are uint8 [n, height, width, 3] with values 0 to 255, height = width, and may be
    read-only memory maps. `train_labels` and `test_labels` are int32 [n], indices into `class_names`. `mean` and
    `std` are those of pixel/255 per channel, or None where the caller has to compute them from its training split.

    Raises UserError where an array has another shape or type, a part is empty, or a label is out of range.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    mean: Channels | None = None
    std: Channels | None = None

    def __post_init__(self):
        for part in ("train", "test"):
            images, labels = getattr(self, f"{part}_images"), getattr(self, f"{part}_labels")
            where = f"data set '{self.name}'"
            if (
                images.dtype != np.uint8
                or images.ndim != 4
                or images.shape[3] != 3
                or images.shape[1] != images.shape[2]
            ):
                raise UserError(
                    f"{where}: {part}_images is {images.dtype} {list(images.shape)}, but has to be uint8 "
                    "[n, size, size, 3]; bring the images to one square RGB size first."
                )
            if images.shape[1:] != self.train_images.shape[1:]:
                raise UserError(
                    f"{where}: test_images are {images.shape[1]} pixels high, but train_images are {self.image_size}; "
                    "bring both to one size first."
                )
            if labels.dtype != np.int32 or labels.shape != images.shape[:1]:
                raise UserError(
                    f"{where}: {part}_labels is {labels.dtype} {list(labels.shape)}, but has to be int32 "
                    f"[{len(images)}], one label for each image."
                )
            if len(images) == 0 or images.shape[1] == 0:
                raise UserError(f"{where}: its {part} part holds no image; it needs at least one.")
            if labels.min() < 0 or labels.max() >= self.num_classes:
                raise UserError(
                    f"{where}: {part}_labels runs from {labels.min()} to {labels.max()}, but with {self.num_classes} "
                    f"classes only 0 to {self.num_classes - 1} are allowed; give a name to every class."
                )

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_size(self) -> int:
        """Height and width of every image in pixels."""
        return self.train_images.shape[1]

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the decoded images, labels and class names, as 64 hex digits.

        It depends on content only: not on places, times, the source's name or whether a decoded copy was read. It is
        computed at the first use, which reads all images once (about 1 GB/s).
        """
        shapes = [list(self.train_images.shape), list(self.test_images.shape)]
        digest = hashlib.sha256(json.dumps([shapes, self.class_names]).encode())
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            for start in range(0, len(array), _ROWS):  # in blocks: images may be larger than memory
                digest.update(array[start : start + _ROWS].astype(array.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Options:
    """What a source is asked for: the config fields of these names below `data`.

    `dir` is the folder that holds the source's files, `cache_dir` the one for decoded copies (None: chosen by
    `dctps_jax.data.cache`), `image_size` the size asked for in pixels (0: the source's own), `max_pixels` what an image
    file may have at most before it is resized, `fit` how it is brought to another shape.
    """

    dir: Path
    cache_dir: Path | None = None
    image_size: int = 0
    download: bool = True
    max_pixels: int = MAX_PIXELS
    fit: str = "squash"


@dataclass(frozen=True)
class DecodedPart:
    """One part of a data set while it is decoded: int32 `labels` [n] and its images as uint8 blocks [*, size, size, 3].

    The blocks come in the order of the labels, so that a part never has to fit into memory as a whole.
    """

    labels: np.ndarray
    image_size: int
    blocks: Iterator[np.ndarray]


@dataclass(frozen=True)
class Decoded:
    """What the decoder of a source gives: both parts and the names of the classes."""

    train: DecodedPart
    test: DecodedPart
    class_names: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """What the arrays take."""
        parts = (self.train, self.test)
        return sum(len(part.labels) * (3 * part.image_size**2 + part.labels.itemsize) for part in parts)


Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]
