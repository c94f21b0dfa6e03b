"""Image files that are found but not decoded yet, and images that are decoded whenever they are asked for."""

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
ADVICE = "set data.image_size to resize all images to one size"


class ImageFiles(Protocol):
    """The image files of one part of a data set, in a fixed order, and the numbers of their classes, int32 [n].

    A file is read from several threads, and from other processes, to which the object is pickled.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> tuple[str, bytes]:
        """Return where a file is, and its content."""
        ...

    @property
    def labels(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Encoded:
    """A data set of image files.

    `digest` tells files apart wherever they lie, by names and sizes, `stamp` also whether a file was written
    again; the decoded copy has it in its name. `decode` makes that copy, of the files of `folder`.
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
        """Return the data set with all images decoded, out of the cache if they have been."""
        return Dataset(self.name, *cached(self.name, self.folder, self.stamp, options, self.decode))

    def image_shape(self, options: Options) -> tuple[int, ...]:
        """Return the shape that all images have, which is that of the first one."""
        where, content = self.train[0]
        return FileImages(self.train, options, (0, 0, options.channels)).decode(where, content).shape

    def num_bytes(self, options: Options) -> int:
        """Return what all images take when they are decoded."""
        return (len(self.train) + len(self.test)) * math.prod(self.image_shape(options))

    def decoded_when_read(self, options: Options) -> Dataset:
        """Return the data set with images that are decoded whenever they are asked for."""
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
    """Stands in for an array of images, uint8 [n, height, width, channels]; what is asked for is decoded then.

    With an `epoch`, the images are random resized crops for this epoch.
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
        """Return the images as they are trained on in an epoch."""
        return replace(self, epoch=epoch) if self.options.crop == "random_resized" else self

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Return the images in some rows. Raises UserError, which names the file, for one that cannot be decoded."""
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
