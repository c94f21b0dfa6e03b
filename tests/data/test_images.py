import io
import warnings

import numpy as np
import pytest
from PIL import Image

from dctps_jax.data.images import decode_image, image_blocks
from dctps_jax.errors import UserError

PIXELS = np.arange(6 * 6 * 3, dtype=np.uint8).reshape(6, 6, 3)


def encode(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["PNG", "BMP", "WEBP"])
def test_lossless_formats(format):
    options = {"lossless": True} if format == "WEBP" else {}
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(PIXELS), format, **options), "x"), PIXELS)


def test_other_modes_become_rgb():
    grey = PIXELS[..., 0]
    three = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(grey)), "x"), three)
    np.testing.assert_array_equal(
        decode_image(encode(Image.fromarray(grey), "JPEG", quality=100), "x")[..., 1].shape, (6, 6)
    )
    deep = Image.fromarray(grey.astype(np.uint16) * 256 + 17)
    np.testing.assert_array_equal(decode_image(encode(deep), "x"), three)
    alpha = np.dstack([PIXELS, np.full((6, 6), 100, np.uint8)])
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(alpha)), "x"), PIXELS)


def test_palette_with_transparency_gives_no_warning():
    image = Image.new("P", (4, 4))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = decode_image(encode(image, transparency=bytes([0, 128])), "x")
    assert decoded[0, 0].tolist() == [10, 20, 30] and decoded[0, 1].tolist() == [200, 100, 50]


def test_resizing_is_antialiased():
    checks = np.indices((32, 32)).sum(0) % 2 * 255
    image = Image.fromarray(np.repeat(checks[..., None], 3, axis=2).astype(np.uint8))
    small = decode_image(encode(image), "x", resize_to=8)
    assert small.shape == (8, 8, 3)
    assert np.all(np.abs(small.astype(int) - 127) < 20)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "WEBP"])
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.9])
def test_cut_short(format, keep):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    data = encode(Image.fromarray(noise), format)
    with pytest.raises(UserError, match=r"some/file\.png cannot be read as an image"):
        decode_image(data[: int(keep * len(data))], "some/file.png")


def test_foreign_data():
    with pytest.raises(UserError, match="cannot be read as an image"):
        decode_image(b"hello", "x")


def test_blocks_keep_the_order():
    images = {str(number): np.full((4, 4, 3), number % 256, np.uint8) for number in range(1100)}
    data = {name: encode(Image.fromarray(image), "BMP") for name, image in images.items()}
    blocks = list(image_blocks(list(data), data.__getitem__, 4, resize=False, size_advice=""))
    assert [len(block) for block in blocks] == [64] * 17 + [12]
    np.testing.assert_array_equal(np.concatenate(blocks), np.stack(list(images.values())))


def test_another_size_is_named():
    data = {"a": (4, 4), "b": (5, 4), "c": (9, 9)}
    read = {name: encode(Image.new("RGB", size)) for name, size in data.items()}.__getitem__
    with pytest.raises(UserError, match=r"^b is 5 x 4 pixels, but has to be 4 x 4; do this"):
        list(image_blocks(list(data), read, 4, resize=False, size_advice="do this"))
