import io
import struct
import subprocess
import sys
import warnings
import zlib

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


@pytest.mark.parametrize("format", ["PNG", "BMP", "WEBP", "GIF", "TIFF"])
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
    opaque = np.dstack([PIXELS, np.full((6, 6), 255, np.uint8)])
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(opaque)), "x"), PIXELS)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "RGB", "L"])
def test_white_shows_through_transparent_pixels(mode):
    image = Image.new("RGBA", (4, 4), (100, 100, 100, 255))
    image.putpixel((1, 0), (100, 100, 100, 0))
    image.putpixel((2, 0), (100, 100, 100, 128))
    options = {}
    if mode in ("RGB", "L"):  # one colour stands for transparency
        image = Image.new("RGBA", (4, 4), (100, 100, 100, 255))
        image.putpixel((1, 0), (7, 7, 7, 255))
        options["transparency"] = 7 if mode == "L" else (7, 7, 7)
    elif mode == "P":
        image = Image.new("P", (4, 4), 0)
        image.putpalette([100, 100, 100] * 3)
        image.putpixel((1, 0), 1)
        image.putpixel((2, 0), 2)
        options["transparency"] = bytes([255, 0, 128])
    data = encode(
        image.convert(mode) if mode not in ("RGBA", "P") else image, "TIFF" if mode == "PA" else "PNG", **options
    )
    decoded = decode_image(data, "x")
    assert decoded[3, 3].tolist() == [100] * 3 and decoded[0, 1].tolist() == [255] * 3
    if mode not in ("RGB", "L"):
        assert decoded[0, 2].tolist() == [177] * 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_upright(format, orientation):
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:4, :8] = 200  # the upper left corner is bright
    undo = {
        1: lambda image: image, 2: lambda image: image[:, ::-1], 3: lambda image: image[::-1, ::-1],
        4: lambda image: image[::-1], 5: lambda image: image.swapaxes(0, 1),
        6: lambda image: np.rot90(image), 7: lambda image: np.rot90(image, 2).swapaxes(0, 1),
        8: lambda image: np.rot90(image, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    decoded = decode_image(encode(stored, format, exif=exif), "x")
    assert decoded.shape == upright.shape
    assert np.abs(decoded.astype(int) - upright).mean() < 5


def test_damaged_exif_data_are_passed_over():
    data = encode(Image.fromarray(PIXELS), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\0\1\2")
    np.testing.assert_array_equal(decode_image(data, "x"), PIXELS)


def test_shapes_are_fitted():
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 2:6] = 100  # the middle
    for fit, first, middle in (("crop", 100, 100), ("pad", 255, 100), ("squash", 0, 100)):
        image = decode_image(encode(Image.fromarray(pixels)), "x", resize_to=4, fit=fit)
        assert image.shape == (4, 4, 3) and abs(int(image[0, 0, 0]) - first) < 20
        assert abs(int(image[2, 1, 0]) - middle) < 40


def test_palette_with_transparency_gives_no_warning():
    image = Image.new("P", (4, 4))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = decode_image(encode(image, transparency=bytes([0, 128])), "x")
    assert decoded[0, 0].tolist() == [255, 255, 255] and decoded[0, 1].tolist() == [227, 177, 152]


def test_resizing_is_antialiased():
    checks = np.indices((32, 32)).sum(0) % 2 * 255
    image = Image.fromarray(np.repeat(checks[..., None], 3, axis=2).astype(np.uint8))
    small = decode_image(encode(image), "x", resize_to=8)
    assert small.shape == (8, 8, 3)
    assert np.all(np.abs(small.astype(int) - 127) < 20)


@pytest.mark.parametrize("format", ["GIF", "TIFF", "WEBP"])
def test_the_first_of_several_frames_is_taken(format):
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(decode_image(data, "x"), PIXELS)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def test_no_other_program_is_started(ghostscript):
    with pytest.raises(UserError, match=r"^x\.png cannot be read as an image \(not one of PNG, JPEG"):
        decode_image(EPS, "x.png")
    assert not ghostscript.exists()


@pytest.mark.parametrize("format", ["PPM", "ICO", "TGA", "PCX", "DDS", "SGI", "PDF"])
def test_other_formats_are_refused(format):
    with pytest.raises(UserError, match="cannot be read as an image"):
        decode_image(encode(Image.new("RGB", (16, 16)), format), "x.png")


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.full((4, 4), 0.5, np.float32), "floating-point"),
        (np.full((4, 4), 70_000, np.int32), "from 70000 to 70000"),
        (np.full((4, 4), -1, np.int32), "from -1 to -1"),
    ],
)
def test_pixels_without_a_counterpart_of_8_bits_are_refused(array, reason):
    with pytest.raises(UserError, match=rf"^x\.tif cannot be read as an image .*{reason}"):
        decode_image(encode(Image.fromarray(array), "TIFF"), "x.tif")


def png_header(width, height):
    """A PNG without a single pixel: who decodes it before looking at its size calls it damaged."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rest = struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 10**6) + b"IDAT"
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + rest


@pytest.mark.parametrize(
    ("size", "found"),
    [
        ((6000, 6000), "6000 x 6000 pixels"),
        ((13000, 13000), "13000 x 13000 pixels"),
        ((60000, 60000), "more than 178,956,970 pixels"),
    ],
)
def test_too_many_pixels_are_refused_by_the_header(size, found):
    with pytest.raises(UserError) as caught:
        decode_image(png_header(*size), "x.png", resize_to=8)
    assert str(caught.value) == (
        f"x.png has {found}, but config.data.max_pixels allows 33,554,432 pixels; "
        "make the image smaller, or raise config.data.max_pixels"
    )


def test_what_pillow_warns_of_stays_off_the_screen(tmp_path):
    (tmp_path / "x.png").write_bytes(png_header(13000, 13000))
    code = (
        "import pathlib, sys; from dctps_jax.data.images import decode_image\n"
        "try: decode_image(pathlib.Path(sys.argv[1]).read_bytes(), 'x')\n"
        "except ValueError: pass"
    )
    command = [sys.executable, "-W", "default", "-c", code, str(tmp_path / "x.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_the_bound_on_pixels_is_exact():
    data = encode(Image.fromarray(PIXELS))
    assert decode_image(data, "x", max_pixels=36).shape == (6, 6, 3)
    with pytest.raises(UserError, match="has 6 x 6 pixels, but --max-pixels allows 35 pixels"):
        decode_image(data, "x", max_pixels=35, limit_name="--max-pixels")


def test_tiles_larger_than_the_image_count():
    tags = {256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 277: 1, 322: 2**15, 323: 2**15, 324: 200, 325: 100}
    data = b"II*\0" + struct.pack("<IH", 8, len(tags))
    data += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    with pytest.raises(UserError, match=r"^x\.tif has tiles of 32768 x 32768 pixels"):
        decode_image(data.ljust(300, b"\0"), "x.tif")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF"])
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
    with pytest.raises(UserError, match=r"^b is 5 x 4 pixels, but must be 4 x 4; do this"):
        list(image_blocks(list(data), read, 4, resize=False, size_advice="do this"))
