"""Crops and flips: which ones are drawn, and the same pixels in each way of cropping."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dctps_jax.data.augmentation import CROP_PADDING, augment, draw_crops, draw_crops_of_steps
from dctps_jax.ops.target import tracing_for
from tests.absent_tpu import text_of_program
from tests.data.test_batches import noise


def drawn(count, step=0):
    return draw_crops(jnp.asarray(step), key=jax.random.key(3), batch_size=count)


def crops_of(image):
    """All images that augmentation may make of one, by (row, column, flipped)."""
    size = len(image)
    border = np.zeros((size + 2 * CROP_PADDING, size + 2 * CROP_PADDING, 3), np.uint8)
    border[CROP_PADDING:-CROP_PADDING, CROP_PADDING:-CROP_PADDING] = image
    places = range(2 * CROP_PADDING + 1)
    crops = {
        (row, column, False): border[row : row + size, column : column + size] for row in places for column in places
    }
    return crops | {(row, column, True): crop[:, ::-1] for (row, column, _), crop in crops.items()}


def test_augmented_pixels_are_a_crop_of_the_bordered_image():
    images = noise(1500, size=5)
    augmented = np.asarray(augment(jnp.asarray(images), drawn(len(images))))
    assert augmented.dtype == np.uint8 and augmented.shape == images.shape
    chosen = []
    for before, after in zip(images, augmented, strict=True):
        matching = [place for place, crop in crops_of(before).items() if np.array_equal(crop, after)]
        assert len(matching) >= 1
        chosen.append(matching[0])
    rows, columns, flips = np.array(chosen).T
    for corner in (rows, columns):  # each of the nine places about as often: 167 expected, deviation 12
        assert np.bincount(corner, minlength=9).min() > 110 and np.bincount(corner, minlength=9).max() < 225
    assert 0.45 < flips.mean() < 0.55
    assert abs(np.corrcoef(rows, columns)[0, 1]) < 0.1 and abs(np.corrcoef(rows, flips)[0, 1]) < 0.1


@pytest.mark.parametrize("shape", [(5, 5, 3), (6, 9, 1), (32, 32, 3), (4, 32, 4), (3, 43, 3)])
def test_a_tpu_makes_the_same_pixels(shape):
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (200, *shape), np.uint8))
    with tracing_for("tpu"):
        on_tpu = augment(images, drawn(200))
    np.testing.assert_array_equal(on_tpu, augment(images, drawn(200)))


def test_crops_drawn_for_several_steps_are_those_of_each():
    together = draw_crops_of_steps(jnp.asarray(7), 3, key=jax.random.key(3), batch_size=5)
    for number in range(3):
        alone = drawn(5, step=7 + number)
        jax.tree.map(np.testing.assert_array_equal, alone, jax.tree.map(lambda x, n=number: x[n], together))


def test_a_tpu_makes_the_same_numbers_of_others_than_bytes():
    images = jnp.asarray(np.random.default_rng(0).normal(size=(50, 5, 5, 3)), jnp.float32)
    with tracing_for("tpu"):
        on_tpu = augment(images, drawn(50))
    np.testing.assert_array_equal(on_tpu, augment(images, drawn(50)))


@pytest.mark.parametrize(
    ("width", "dtype", "is_product"),
    [(32, jnp.uint8, True), (42, jnp.uint8, True), (43, jnp.uint8, False), (32, jnp.float32, False)],
)
def test_a_tpu_takes_a_product_for_small_images_of_bytes(width, dtype, is_product):
    with tracing_for("tpu"):
        program = jax.make_jaxpr(augment)(jnp.zeros((2, 4, width, 3), dtype), drawn(2))
    assert ("dot_general" in str(program)) == is_product


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("is_on_tpu", [True, False])
def test_a_tpu_crops_without_a_loop_over_the_images(monkeypatch, is_on_tpu, size):
    """Cropped by slices, its compiler makes a loop of them: the second case shows it."""
    arguments = jax.ShapeDtypeStruct((128, size, size, 3), jnp.uint8), drawn(128)
    program = text_of_program(monkeypatch, augment, arguments, "tpu" if is_on_tpu else "cpu")
    assert (" while(" not in program) == is_on_tpu
