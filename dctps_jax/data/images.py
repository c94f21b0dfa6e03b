"""Image files (PNG, JPEG, BMP, WebP) to uint8 RGB arrays, many at a time."""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dctps_jax.errors import UserError

_BLOCK = 64
_THREADS = min(8, os.cpu_count() or 1)


def decode_image(data: bytes, where: str, resize_to: int = 0) -> np.ndarray:
    """Decodes an image file into uint8 RGB [height, width, 3].

    Greyscale becomes three equal channels, of 16 bits the upper 8 are kept, palettes are looked up, and transparency
    is dropped. With `resize_to`, the image is brought to that many pixels square, bilinearly with antialiasing. Raises
    UserError, which names the file as `where`, for data that is no image or is cut short.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
            image: Image.Image = opened
            if image.mode.startswith("I"):
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            elif image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")  # Pillow warns on the direct way to RGB
            if image.mode != "RGB":
                image = image.convert("RGB")
            if resize_to and image.size != (resize_to, resize_to):
                image = image.resize((resize_to, resize_to), Image.Resampling.BILINEAR)
            return np.asarray(image)
    except Exception as error:  # Pillow raises errors of many types on damaged files
        raise UserError(
            f"{where} cannot be read as an image ({type(error).__name__}: {error}); replace or remove it."
        ) from error


def image_blocks(
    files: Sequence[str], read: Callable[[str], bytes], size: int, *, resize: bool, size_advice: str
) -> Iterator[np.ndarray]:
    """Yields the images of `files` in their order, as uint8 blocks [up to 64, size, size, 3].

    `read` gives the content of a file; it is called from several threads. Raises UserError for a file that is no image,
    or, without `resize`, for the first one that is not `size` pixels square; the message ends with `size_advice`.
    """

    def one(file: str) -> np.ndarray:
        image = decode_image(read(file), file, size if resize else 0)
        if image.shape != (size, size, 3):
            height, width = image.shape[:2]
            raise UserError(f"{file} is {width} x {height} pixels, but has to be {size} x {size}; {size_advice}")
        return image

    def block(start: int) -> np.ndarray:
        return np.stack([one(file) for file in files[start : start + _BLOCK]])

    # Threads only speed up large images. A whole block for each keeps them from slowing down small ones.
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(files), _THREADS * _BLOCK):
            stop = min(start + _THREADS * _BLOCK, len(files))
            yield from pool.map(block, range(start, stop, _BLOCK))
