"""What every data source takes and returns: ``Options``, ``Decoded`` while it is read, ``Dataset``."""

import functools
import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dctps_jax.errors import UserError

_ROWS = 1024
FILES = "files:"  # begins a fingerprint of names and sizes of files, which is not one of decoded images
MAX_PIXELS = 2**25  # of an image file: photographs of 24 megapixels pass

# The advice for labels that do not start at 0.
SUBTRACT_SMALLEST = "subtract the smallest label from all labels, in both parts"

# One number for each channel.
Channels = tuple[float, ...]
# Height and width, or one number if they are equal.
Size = int | tuple[int, int]


def size_of(value: int | list[int]) -> Size:
    """Return the size that a JSON file holds."""
    return (value[0], value[1]) if isinstance(value, list) else value


def height_and_width(size: Size) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images in a training and a test part, as they are stored: no scaling, no augmentation.

    ``train_images`` and ``test_images`` are uint8 [n, height, width, channels] with values 0 to 255, all of one size
    and with 1 (grey) or 3 (RGB) channels. They may be read-only memory maps, or objects that decode image files on each
    access (``dctps_jax.data.encoded.FileImages``); then ``files_digest`` identifies the files. ``train_labels`` and
    ``test_labels`` are int32 [n], indices into ``class_names``. ``mean`` and ``std`` are the moments of pixel/255 in
    each channel, or None if the caller has to compute them from its training split.

    Raises UserError if an array has another shape or type, a part is empty, or a label is out of range.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    mean: Channels | None = None
    std: Channels | None = None
    files_digest: str = ""

    def __post_init__(self):
        for part in ("train", "test"):
            images, labels = getattr(self, f"{part}_images"), getattr(self, f"{part}_labels")
            where = f"data set '{self.name}'"
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
                raise UserError(
                    f"{where}: {part}_images is {images.dtype} {list(images.shape)}, but must be uint8 "
                    "[n, height, width, channels] with 1 or 3 channels; bring the images to one size and to bytes "
                    "from 0 to 255 first"
                )
            if images.shape[1:] != self.train_images.shape[1:]:
                raise UserError(
                    f"{where}: an image of test_images is {list(images.shape[1:])}, but one of train_images "
                    f"{list(self.train_images.shape[1:])}; bring both to one size first"
                )
            if labels.dtype != np.int32 or labels.shape != images.shape[:1]:
                raise UserError(
                    f"{where}: {part}_labels is {labels.dtype} {list(labels.shape)}, but must be int32 "
                    f"[{len(images)}], one label for each image"
                )
            if images.size == 0:
                raise UserError(f"{where}: its {part} part holds no image; it needs at least one")
            if labels.min() < 0:
                raise UserError(
                    f"{where}: {part}_labels runs from {labels.min()} to {labels.max()}, but classes are numbered from "
                    f"0; {SUBTRACT_SMALLEST}"
                )
            if labels.max() >= self.num_classes:
                raise UserError(
                    f"{where}: {part}_labels runs from {labels.min()} to {labels.max()}, but with {self.num_classes} "
                    f"classes only 0 to {self.num_classes - 1} are allowed; give a name to every class"
                )

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_size(self) -> Size:
        """Height and width of every image in pixels: one number, or two if they differ."""
        height, width = self.train_images.shape[1:3]
        return height if height == width else (height, width)

    @property
    def channels(self) -> int:
        """1 for grey images, 3 for RGB."""
        return self.train_images.shape[3]

    @property
    def summary(self) -> str:
        """The numbers of images and classes and the size of the images, in one line."""
        height, width = self.train_images.shape[1:3]
        return (
            f"{len(self.train_labels)} training and {len(self.test_labels)} test images of {self.num_classes} classes, "
            f"{width} x {height} pixels, {'grey' if self.channels == 1 else 'RGB'}"
        )

    @property
    def untrained_classes(self) -> list[int]:
        """The classes without training images."""
        return list(itertools.chain(*classes_without(self.train_labels, self.num_classes)))

    @property
    def is_decoded(self) -> bool:
        """Whether the images are decoded already, not at each access."""
        return not self.files_digest

    @property
    def num_bytes(self) -> int:
        """How many bytes all images take when they are decoded."""
        return self.train_images.size + self.test_images.size

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the decoded images, labels and class names, as 64 hex digits.

        It depends on the content only, not on places, times, the source's name, or whether a decoded copy was read. The
        first use computes it, which reads all images once (about 1 GB/s). For images that are not decoded yet it is the
        digest of their files, after ``FILES``.
        """
        if self.files_digest:
            return FILES + self.files_digest
        shapes = [list(self.train_images.shape), list(self.test_images.shape)]
        digest = hashlib.sha256(json.dumps([shapes, self.class_names]).encode())
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            for start in range(0, len(array), _ROWS):  # in blocks: images may be larger than memory
                digest.update(array[start : start + _ROWS].astype(array.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Options:
    """The options of a source: the config fields of these names below ``data``.

    ``dir`` is the folder that holds the source's files. ``cache_dir`` is the folder for decoded copies (None:
    ``dctps_jax.data.cache`` chooses it). ``image_size`` is the wanted size in pixels (0: the source's own).
    ``max_pixels`` is the largest size of an image file before it is resized. ``fit`` says how images of another shape
    get the wanted size. ``channels`` is the number of channels of images from files: 3, or 1 for grey ones. ``seed`` is
    the run's seed, for a source that draws its images. ``crop`` is "random_resized" to crop images from files in
    another way in each epoch, while training.
    """

    dir: Path
    cache_dir: Path | None = None
    image_size: int = 0
    download: bool = True
    max_pixels: int = MAX_PIXELS
    channels: int = 3
    seed: int = 0
    fit: str = "squash"
    crop: str = "padded"

    @property
    def decoding(self) -> str:
        """What a decoded copy depends on besides the files."""
        return f"image_size={self.image_size},channels={self.channels},fit={self.fit}"


@dataclass(frozen=True)
class DecodedPart:
    """One part of a data set while it is decoded: int32 ``labels`` [n] and its images as uint8 blocks.

    A block is [*, height, width, channels]. The blocks come in the order of the labels, so that a part never has to fit
    into memory as a whole.
    """

    labels: np.ndarray
    image_size: Size
    blocks: Iterator[np.ndarray]
    channels: int = 3

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all images of the part together."""
        return (len(self.labels), *height_and_width(self.image_size), self.channels)


@dataclass(frozen=True)
class Decoded:
    """The result of a source's decoder: both parts and the names of the classes."""

    train: DecodedPart
    test: DecodedPart
    class_names: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """How many bytes the arrays take."""
        parts = (self.train, self.test)
        return sum(math.prod(part.shape) + part.labels.nbytes for part in parts)


def classes_without(labels: np.ndarray, num_classes: int) -> list[range]:
    """Return the classes that no label names, as ranges, since a label may be far too large."""
    present = np.unique(labels).tolist()
    between = zip([-1, *present], [*present, num_classes], strict=True)
    return [range(low + 1, high) for low, high in between if low + 1 < high]


def check_numbering(where: str, train_labels: np.ndarray, num_classes: int, how: str = "give class_names") -> None:
    """Raise UserError if a class whose only name is its number has no training image.

    The labels then start at 1, have gaps, or are numbered in another way in the test part. ``how`` tells the user how
    to name all classes, so that such a class may stay.
    """
    missing = classes_without(train_labels, num_classes)
    if not missing:
        return
    lowest = int(train_labels.min())
    if missing == [range(lowest)]:
        raise UserError(
            f"{where}: class 0 has no training images, the smallest label is {lowest}; do the labels start at "
            f"{lowest}? {SUBTRACT_SMALLEST}; if such images are really missing, {how}"
        )
    raise UserError(
        f"{where}: labels run to {num_classes - 1}, but {sum(map(len, missing))} of the classes 0 to {num_classes - 1} "
        f"have no training images, the first is {missing[0][0]}; number the classes of both parts alike, from 0 "
        f"without gaps; if such images are really missing, {how}"
    )


Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]
