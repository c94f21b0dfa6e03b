"""Decode image files (PNG, JPEG, BMP, WebP, GIF, TIFF) into uint8 RGB arrays, many at a time."""

import functools
import io
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from dctps_jax.data.dataset import MAX_PIXELS, Size, height_and_width
from dctps_jax.errors import UserError

# Pillow looks at the content of a file. Without a list it would also take EPS, which it gives to another program.
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")

# How an image of another shape gets the wanted size. squash: stretch it. crop: cut the middle. pad: add white margins.
# centre: cut a square of 7/8 of the shorter side from the middle, as is usual on ImageNet (224 of 256 pixels).
FITS = ("squash", "crop", "pad", "centre")
CENTRE = 7 / 8
# Fills margins and shows through transparent pixels.
BACKGROUND = (255, 255, 255)
# Part of the name of decoded copies: a new number makes the copies of an earlier decoder unused.
DECODER = "decoder=2"

_BLOCK = 64
_THREADS = min(8, os.cpu_count() or 1)
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # tags of TIFF
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # tag of EXIF, and its values that exchange height and width

# Left, top, right and bottom of a part of an image, in pixels.
Box = tuple[float, float, float, float]


def max_file_bytes(max_pixels: int) -> int:
    """Return how long an image file may be: four channels of 16 bits without compression, and 1 MiB of other data."""
    return 8 * max_pixels + 2**20


def decode_image(
    data: bytes,
    where: str,
    *,
    max_pixels: int = MAX_PIXELS,
    resize_to: Size = 0,
    limit_name: str = "config.data.max_pixels",
    fit: str = "squash",
    choose_box: Callable[[int, int], Box] | None = None,
) -> np.ndarray:
    """Decode an image file into uint8 RGB [height, width, 3]; of several frames or pages it takes the first.

    It is turned upright as its EXIF data say. Greyscale becomes three equal channels. Of 16 bits the upper 8 are kept.
    Palettes are looked up. White shows through transparent pixels. With ``resize_to``, the image is brought to that
    size, bilinearly with antialiasing, in the way of ``fit``, one of ``FITS``. ``choose_box`` takes width and height
    and returns the part of the image to bring to the size instead. A JPEG much larger than the result needs is decoded
    at a half, a quarter or an eighth of its size, which takes less time.

    Raises UserError, which names the file as ``where``, for data that is not an image or is cut short, for pixels of
    more than 16 bits, and for more than ``max_pixels`` pixels, which the message calls ``limit_name``. The number of
    pixels comes from the header, before anything is decoded.
    """
    pillow = _pillow()
    try:
        with pillow.open(io.BytesIO(data), formats=FORMATS) as opened:
            _check_pixels(opened, where, max_pixels, limit_name)
            full_size, box = opened.size, None
            if choose_box is not None:
                full_size = _upright_size(opened)
                box = choose_box(*full_size)
                _draft(opened, full_size, box, resize_to)
            opened.load()
            image = _upright(opened)
            if image.mode.startswith("I"):
                image = pillow.fromarray(_upper_bits(np.asarray(image)))
            elif image.mode == "F":
                raise ValueError("its pixels are floating-point numbers, 8 or 16 bits are allowed")
            elif image.has_transparency_data:
                background = pillow.new("RGBA", image.size, BACKGROUND)
                image = pillow.alpha_composite(background, image.convert("RGBA"))
            if image.mode != "RGB":
                image = image.convert("RGB")
            height, width = height_and_width(resize_to)
            if box is not None:
                return np.asarray(_part_of(image, full_size, box, (width, height)))
            return np.asarray(_resized(image, (width, height), fit) if resize_to else image)
    except (UserError, MemoryError):
        raise
    except pillow.DecompressionBombError as error:  # Pillow has its own bound, twice its setting
        found = f"more than {2 * pillow.MAX_IMAGE_PIXELS:,} pixels"
        raise _too_large(where, found, max_pixels, limit_name) from error
    except pillow.UnidentifiedImageError as error:
        raise UserError(
            f"{where} cannot be read as an image (not one of {', '.join(FORMATS)}, or damaged); replace or remove it"
        ) from error
    except Exception as error:  # Pillow raises errors of many types on damaged files
        raise UserError(
            f"{where} cannot be read as an image ({type(error).__name__}: {error}); replace or remove it"
        ) from error


def image_blocks(
    files: Sequence[str],
    read: Callable[[str], bytes],
    size: Size,
    *,
    resize: bool,
    size_advice: str,
    max_pixels: int = MAX_PIXELS,
    inside: str = "",
    fit: str = "squash",
    channels: int = 3,
) -> Iterator[np.ndarray]:
    """Yield the images of ``files`` in their order, as uint8 blocks [up to 64, height, width, channels].

    ``read`` gives the content of a file; several threads call it. Raises UserError for a file that is not an image or
    has more than ``max_pixels``, and, without ``resize``, for the first image of another size than ``size``. That
    message ends with ``size_advice``. Messages add ``inside`` to the names of files, e.g. " in ARCHIVE".
    """

    def decode(file: str) -> np.ndarray:
        data, where = read(file), f"{file}{inside}"
        image = decode_image(data, where, max_pixels=max_pixels, resize_to=size if resize else 0, fit=fit)
        check_size(image, where, size, size_advice)
        return image if channels == 3 else as_grey(image)

    def block(start: int) -> np.ndarray:
        return np.stack([decode(file) for file in files[start : start + _BLOCK]])

    # Threads only speed up large images. Each thread decodes a whole block, so that small images are not slowed down.
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(files), _THREADS * _BLOCK):
            stop = min(start + _THREADS * _BLOCK, len(files))
            try:
                blocks = pool.map(block, range(start, stop, _BLOCK))
            except RuntimeError as error:
                raise UserError(
                    f"{files[start]} cannot be decoded ({error}); allow more threads (ulimit -u) or more memory"
                ) from error
            yield from blocks


def check_size(image: np.ndarray, where: str, size: Size, advice: str) -> None:
    """Raise UserError, which ends with ``advice``, for an image of another size than ``size``."""
    (height, width), (right_height, right_width) = image.shape[:2], height_and_width(size)
    if (height, width) != (right_height, right_width):
        raise UserError(f"{where} is {width} x {height} pixels, but must be {right_width} x {right_height}; {advice}")


def resize(image: np.ndarray, size: Size, fit: str) -> np.ndarray:
    """Return an RGB image in another size, in the way of ``fit``, as :func:`decode_image` does."""
    height, width = height_and_width(size)
    return np.asarray(_resized(_pillow().fromarray(image), (width, height), fit))


def as_grey(image: np.ndarray) -> np.ndarray:
    """Return an RGB image as one channel, [height, width, 1]: unchanged if it is grey, else its luma (ITU-R 601)."""
    from PIL import Image

    return np.asarray(Image.fromarray(image).convert("L"))[..., None]


def _upright(image: Any) -> Any:
    """Return an image turned by its EXIF orientation. Damaged EXIF data are ignored."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # Pillow raises errors of many types on damaged EXIF data
        return image


def _upright_size(opened: Any) -> tuple[int, int]:
    """Return width and height of an image turned by its EXIF orientation."""
    width, height = opened.size
    try:
        is_turned = opened.getexif().get(_ORIENTATION) in _TURNED
    except MemoryError:
        raise
    except Exception:  # Pillow raises errors of many types on damaged EXIF data
        is_turned = False
    return (height, width) if is_turned else (width, height)


def _draft(opened: Any, full_size: tuple[int, int], box: Box, size: Size) -> None:
    """Have a JPEG decoded at the smallest scale at which ``box`` still has as many pixels as ``size`` needs."""
    height, width = height_and_width(size)
    wanted = full_size[0] * width / (box[2] - box[0]), full_size[1] * height / (box[3] - box[1])
    if full_size != opened.size:
        wanted = wanted[::-1]
    opened.draft(None, tuple(map(math.ceil, wanted)))


def _centre(width: int, height: int) -> Box:
    side = CENTRE * min(width, height)
    return (width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2


def _part_of(image: Any, full_size: tuple[int, int], box: Box, size: tuple[int, int]) -> Any:
    """Return a part of an image in another size; ``box`` is in pixels of the image at full size."""
    scales = image.width / full_size[0], image.height / full_size[1]
    scaled = tuple(edge * scales[number % 2] for number, edge in enumerate(box))
    return image.resize(size, _pillow().Resampling.BILINEAR, box=scaled)


def _resized(image: Any, size: tuple[int, int], fit: str) -> Any:
    from PIL import ImageOps

    method = _pillow().Resampling.BILINEAR
    if fit == "centre":
        return _part_of(image, image.size, _centre(*image.size), size)
    if image.size == size:
        return image
    if fit == "crop":
        return ImageOps.fit(image, size, method)
    if fit == "pad":
        return ImageOps.pad(image, size, method, color=BACKGROUND)
    return image.resize(size, method)


def _check_pixels(opened: Any, where: str, max_pixels: int, limit_name: str) -> None:
    width, height = opened.size
    if width * height > max_pixels:
        raise _too_large(where, f"{width} x {height} pixels", max_pixels, limit_name)
    if opened.format == "TIFF":
        # A tile is decoded as a whole, and may be larger than the image.
        width, height = (int(opened.tag_v2.get(tag, 1)) for tag in (_TILE_WIDTH, _TILE_LENGTH))
        if width * height > max(max_pixels, 2**20):
            raise _too_large(where, f"tiles of {width} x {height} pixels", max_pixels, limit_name)


def _too_large(where: str, found: str, max_pixels: int, limit_name: str) -> UserError:
    return UserError(
        f"{where} has {found}, but {limit_name} allows {max_pixels:,} pixels; make the image smaller, or raise "
        f"{limit_name}"
    )


def _upper_bits(pixels: np.ndarray) -> np.ndarray:
    if pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise ValueError(f"its pixels run from {pixels.min()} to {pixels.max()}, 8 or 16 bits are allowed")
    return (pixels >> 8).astype(np.uint8)


@functools.cache
def _pillow() -> Any:
    """Return PIL.Image with the readers of FORMATS. It would import them later, and skip those that fail to import."""
    from PIL import (  # noqa: F401
        BmpImagePlugin,
        GifImagePlugin,
        Image,
        JpegImagePlugin,
        PngImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )

    # Pillow warns of many pixels, which are counted here, and of odd metadata, which are not used.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    return Image
