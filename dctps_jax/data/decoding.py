"""Image files that come one after another out of a container, as one part of a data set."""

from collections.abc import Iterator
from itertools import chain, islice

import numpy as np

from dctps_jax.data.dataset import DecodedPart, Options
from dctps_jax.data.images import as_grey, check_size, decode_image
from dctps_jax.errors import UserError

_BLOCK = 64


def decode_part(
    files: Iterator[tuple[str, bytes]], labels: np.ndarray, options: Options, advice: str, size: int = 0
) -> DecodedPart:
    """Return a part that decodes its images one by one; ``files`` gives the place and content of each.

    Without ``options.image_size``, all images keep the size of the first one, which need not be square. Otherwise they
    are resized to that size. Raises UserError for a file that is not an image. Raises UserError, which ends with
    ``advice``, for an image of another size than the first, or, unless ``size`` is 0, than ``size`` pixels square.
    """

    def decode(where: str, data: bytes) -> np.ndarray:
        image = decode_image(data, where, max_pixels=options.max_pixels, resize_to=options.image_size, fit=options.fit)
        return image if options.channels == 3 else as_grey(image)

    first_place, first_data = next(files)
    first = decode(first_place, first_data)
    if size:
        check_size(first, first_place, size, advice)

    def images() -> Iterator[np.ndarray]:
        yield first
        for where, data in files:
            image = decode(where, data)
            if size:
                check_size(image, where, size, advice)
            if image.shape != first.shape:
                sizes = " and ".join(f"{width} x {height}" for height, width, _ in (image.shape, first.shape))
                raise UserError(f"{where} and {first_place} are {sizes} pixels; {advice}")
            yield image

    def blocks() -> Iterator[np.ndarray]:
        decoded = images()
        for image in decoded:
            yield np.stack(list(chain([image], islice(decoded, _BLOCK - 1))))

    height, width, channels = first.shape
    return DecodedPart(labels, height if height == width else (height, width), blocks(), channels)
