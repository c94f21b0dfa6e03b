"""Random crops and flips of training images, on the device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dctps_jax.ops import target
from dctps_jax.seeds import stream

CROP_PADDING = 4
# The width of a TPU v5e's matrix unit. By its compiler's estimate, a product of at most this width is cheaper than
# choosing among nine shifted images.
LANES = 128


class Crops(NamedTuple):
    """The random numbers of each image of a batch.

    ``corners`` are the first row and column of the crop, int32 ``[batch, 2]``; ``is_flipped`` says whether to exchange
    left and right, ``[batch]``.
    """

    corners: jax.Array
    is_flipped: jax.Array


def draw_crops(step: jax.Array, *, key: jax.Array, batch_size: int) -> Crops:
    """Return the crops of a training step, which depend on the run's ``key`` and the step only."""
    crop_key, flip_key = jax.random.split(jax.random.fold_in(stream(key, "augment"), step))
    corners = jax.random.randint(crop_key, (batch_size, 2), 0, 2 * CROP_PADDING + 1)
    return Crops(corners, jax.random.bernoulli(flip_key, shape=(batch_size,)))


def draw_crops_of_steps(first: jax.Array, count: int, *, key: jax.Array, batch_size: int) -> Crops:
    """Return the crops of ``count`` steps from ``first`` on, along a new first axis.

    Drawing takes twenty small operations. On a TPU or GPU each takes as long for one step as for many.
    """
    return jax.vmap(lambda step: draw_crops(step, key=key, batch_size=batch_size))(first + jnp.arange(count))


def augment(images: jax.Array, crops: Crops, only_flips: bool = False) -> jax.Array:
    """Crop images ``[batch, height, width, channels]`` out of a border of four black pixels, and flip some of them.

    With ``only_flips`` they are not cropped.
    """
    if only_flips:
        return _flip(images, crops.is_flipped)
    # XLA (JAX 0.10.2) crops by slices in a loop over the images on a TPU v5e: 1.5 million estimated cycles for 128
    # images of 32 × 32, a quarter of a step of VGG19 (tests/data/test_augmentation.py looks for the loop). Choosing
    # among shifted images and flipping takes 46,000 cycles. With the product for the columns it takes 30,000.
    if target.platform() != "tpu":
        return _flip(_crop_by_slices(images, crops.corners), crops.is_flipped)
    batch, height, width, channels = images.shape
    rows = _shifted(images.reshape(batch, height, width * channels), crops.corners[:, 0], axis=1, unit=1)
    if width * channels <= LANES and images.dtype == jnp.uint8:
        return _columns_by_product(rows, crops, channels).reshape(images.shape)
    cropped = _shifted(rows, crops.corners[:, 1], axis=2, unit=channels)
    return _flip(cropped.reshape(images.shape), crops.is_flipped)


def _flip(images: jax.Array, is_flipped: jax.Array) -> jax.Array:
    return jnp.where(is_flipped[:, None, None, None], images[:, :, ::-1], images)


def _crop_by_slices(images: jax.Array, corners: jax.Array) -> jax.Array:
    border = (CROP_PADDING, CROP_PADDING)
    padded = jnp.pad(images, ((0, 0), border, border, (0, 0)))
    shape = images.shape[1:]
    return jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), shape))(
        padded, corners
    )


def _shifted(images: jax.Array, shifts: jax.Array, axis: int, unit: int) -> jax.Array:
    """Crop images ``[batch, rows, columns]`` along ``axis`` out of a border of four black units of ``unit`` numbers.

    The crop of an image begins ``shifts`` units, 0 to 8, after the start of the border. At 4 the image stays as it is.
    Each crop is chosen among the crops at all nine places.
    """
    border = [(CROP_PADDING * unit, CROP_PADDING * unit) if dimension == axis else (0, 0) for dimension in range(3)]
    padded, size = jnp.pad(images, border), images.shape[axis]
    chosen = jax.lax.slice_in_dim(padded, 0, size, axis=axis)
    for shift in range(1, 2 * CROP_PADDING + 1):
        shifted = jax.lax.slice_in_dim(padded, shift * unit, shift * unit + size, axis=axis)
        chosen = jnp.where(shifts[:, None, None] == shift, shifted, chosen)
    return chosen


def _columns_by_product(rows: jax.Array, crops: Crops, channels: int) -> jax.Array:
    """Return uint8 ``rows [batch, height, width·channels]``, cropped and flipped along the width.

    Each image is multiplied by a matrix of zeros and ones. This is exact: bfloat16 has all integers up to 256.
    """
    size = rows.shape[-1]
    place = np.arange(size)[None]
    mirrored = size - channels - place // channels * channels + place % channels
    source = jnp.where(crops.is_flipped[:, None], mirrored, place)
    source += channels * (crops.corners[:, 1:] - CROP_PADDING)
    # [batch, from, to]. A source outside of the row gets no one, so its pixel is black.
    matrix = place[..., None] == source[:, None]
    return jnp.einsum("bhk,bkj->bhj", rows.astype(jnp.bfloat16), matrix.astype(jnp.bfloat16)).astype(rows.dtype)
