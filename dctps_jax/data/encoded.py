"""Image files that are found but not decoded yet, and images that are decoded on each access."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dctps_jax.data.cache import cached
from dctps_jax.data.dataset import Dataset, Decoded, DecodedPart, Options
from dctps_jax.data.decoding import decode_part
from dctps_jax.data.images import as_grey, check_size, decode_image
from dctps_jax.data.random_crop import RandomCrop

# How a message about images of several sizes ends.
ADVICE = "set config.data.image_size to resize all images to one size"


class ImageFiles(Protocol):
    """The image files of one part of a data set, in a fixed order, and the numbers of their classes, int32 [n].

    Several threads read a file, and other processes, to which the object is pickled.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> tuple[str, bytes]:
        """Return the place of a file and its content."""
        ...

    @property
    def labels(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Encoded:
    """A data set of image files.

    ``digest`` identifies the files by names and sizes, wherever they lie. ``stamp`` also changes when a file is written
    again; it is part of the name of the decoded copy. ``decode`` makes that copy from the files in ``folder``.
    """

    name: str
    folder: Path
    train: ImageFiles
    test: ImageFiles
    class_names: tuple[str, ...]
    digest: str
    stamp: str
    decode: Callable[[], Decoded]

    def decoded_once(self, options: Options) -> Dataset:
        """Return the data set with all images decoded, out of the cache if they are there."""
        return Dataset(self.name, *cached(self.name, self.folder, self.stamp, options, self.decode))

    def image_shape(self, options: Options) -> tuple[int, ...]:
        """Return the shape of the first image, which all others share."""
        where, content = self.train[0]
        return FileImages(self.train, options, (0, 0, options.channels)).decode(where, content).shape

    def num_bytes(self, options: Options) -> int:
        """Return how many bytes all images take when they are decoded."""
        return (len(self.train) + len(self.test)) * math.prod(self.image_shape(options))

    def decoded_when_read(self, options: Options) -> Dataset:
        """Return the data set with images that are decoded on each access."""
        shape = self.image_shape(options)
        train: Any = FileImages(self.train, options, shape)
        test: Any = FileImages(self.test, options, shape)
        labels = self.train.labels, self.test.labels
        digest = hashlib.sha256(json.dumps([self.digest, shape, self.class_names]).encode())
        for part in labels:
            digest.update(part.astype("<i4").tobytes())
        names, files_digest = self.class_names, digest.hexdigest()
        return Dataset(self.name, train, labels[0], test, labels[1], names, files_digest=files_digest)


def decode_in_order(train: ImageFiles, test: ImageFiles, class_names: tuple[str, ...], options: Options) -> Decoded:
    """Return both parts, decoded file by file."""

    def part(files: ImageFiles) -> DecodedPart:
        return decode_part((files[row] for row in range(len(files))), files.labels, options, ADVICE)

    return Decoded(part(train), part(test), class_names)


@dataclass(frozen=True)
class FileImages:
    """Stands in for an array of images, uint8 [n, height, width, channels], and decodes the images that are read.

    With an ``epoch``, the images are random resized crops for this epoch.
    """

    files: ImageFiles
    options: Options
    image_shape: tuple[int, ...]
    epoch: int | None = None

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __len__(self) -> int:
        return len(self.files)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.files), *self.image_shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def in_epoch(self, epoch: int) -> "FileImages":
        """Return the images as an epoch trains on them."""
        return replace(self, epoch=epoch) if self.options.crop == "random_resized" else self

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Return the images in some rows. Raises UserError, which names the file, if one cannot be decoded."""
        numbers = np.arange(len(self))[rows] if isinstance(rows, slice) else rows
        images = np.empty((len(numbers), *self.image_shape), np.uint8)
        for place, row in enumerate(map(int, numbers)):
            where, content = self.files[row]
            crop = None if self.epoch is None else RandomCrop(self.options.seed, self.epoch, row)
            image = self.decode(where, content, crop)
            height, width = self.image_shape[:2]
            check_size(image, where, (height, width), ADVICE)
            images[place] = image
        return images

    def decode(self, where: str, content: bytes, crop: Any = None) -> np.ndarray:
        options = self.options
        size = options.image_size
        image = decode_image(
            content, where, max_pixels=options.max_pixels, resize_to=size, fit=options.fit, choose_box=crop
        )
        return image if options.channels == 3 else as_grey(image)
