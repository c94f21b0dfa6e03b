"""Random resized crops: their areas and shapes, inside the image, and turned and scaled as the image is decoded."""

import io

import numpy as np
import pytest
from PIL import Image

from dctps_jax.data.images import decode_image
from dctps_jax.data.random_crop import AREAS, RATIOS, RandomCrop


@pytest.mark.parametrize("size", [(500, 375), (64, 64), (375, 500), (1, 1)])
def test_crops_lie_inside_and_have_the_areas_and_shapes_asked_for(size):
    width, height = size
    boxes = np.array([RandomCrop(0, 0, row)(width, height) for row in range(300)])
    left, top, right, bottom = boxes.T
    assert (boxes[:, :2] >= 0).all() and (right <= width).all() and (bottom <= height).all()
    if min(size) > 1:
        areas, ratios = (right - left) * (bottom - top) / (width * height), (right - left) / (bottom - top)
        assert areas.min() > AREAS[0] * 0.9 and areas.max() <= AREAS[1] and np.ptp(areas) > 0.7
        assert ratios.min() > RATIOS[0] * 0.9 and ratios.max() < RATIOS[1] * 1.1 and np.ptp(ratios) > 0.4


def test_a_very_long_image_gives_its_middle():
    assert RandomCrop(0, 0, 0)(4000, 3) == (1998.0, 0.0, 2002.0, 3)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("scale", [1, 8])
def test_a_part_of_a_large_jpeg(orientation, scale):
    """The part is that of the upright image, also where the file is decoded at a smaller size."""
    columns, rows = np.meshgrid(np.arange(40 * scale) / scale, np.arange(24 * scale) / scale)
    image = np.stack([columns * 6, rows * 10, np.zeros_like(rows)], -1).astype(np.uint8)
    stored = Image.fromarray(image)
    if orientation == 6:  # to be turned clockwise
        stored = stored.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    stored.save(file, "JPEG", quality=95, exif=exif)
    box = tuple(edge * scale for edge in (20, 8, 36, 24))
    part = decode_image(file.getvalue(), "x", resize_to=16, choose_box=lambda width, height: box)
    expected = image[8 * scale : 24 * scale, 20 * scale : 36 * scale]
    expected = np.asarray(Image.fromarray(expected).resize((16, 16), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(part.astype(int) - expected)[1:-1, 1:-1, :2].max() <= 12
