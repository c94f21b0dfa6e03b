"""How a recipe may change training batches besides crops and flips: cutout, random erasing, mixup, soft labels."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dctps_jax.seeds import stream


class Regularization(NamedTuple):
    """How the batches of training are changed; nothing by default.

    ``cutout`` is a side in pixels, ``random_erasing`` a probability, ``mixup`` the parameter of a Beta distribution,
    ``label_smoothing`` the part of a label that is shared among the ``num_classes`` classes.
    """

    cutout: int = 0
    random_erasing: float = 0.0
    mixup: float = 0.0
    label_smoothing: float = 0.0
    num_classes: int = 0


NOTHING = Regularization()


def blank_out(images: jax.Array, step: jax.Array, key: jax.Array, settings: Regularization) -> jax.Array:
    """Set rectangles of normalised images to 0, the mean colour, by cutout and random erasing."""
    if settings.cutout:
        images = cut_out(images, jax.random.fold_in(stream(key, "cutout"), step), settings.cutout)
    if settings.random_erasing:
        images = erase(images, jax.random.fold_in(stream(key, "erasing"), step), settings.random_erasing)
    return images


def cut_out(images: jax.Array, key: jax.Array, side: int) -> jax.Array:
    """Blank a square around a random pixel of each image. It may extend beyond the image (DeVries & Taylor 2017)."""
    batch, height, width, _ = images.shape
    centers = jax.random.randint(key, (batch, 2), 0, jnp.array([[height, width]]))
    first = centers - side // 2
    return _without(images, first, first + side)


def erase(images: jax.Array, key: jax.Array, probability: float) -> jax.Array:
    """Blank a random rectangle of some images (Zhong et al. 2020).

    The rectangle has 2 to 33 % of the image's area, and its height is 0.3 to 3.3 times its width. Then each side is cut
    to that of the image, if it is longer. Here it is filled with the mean colour, in the paper with random pixels.
    """
    batch, height, width, _ = images.shape
    keys = jax.random.split(key, 4)
    area = height * width * jax.random.uniform(keys[0], (batch,), minval=0.02, maxval=0.33)
    ratio = jnp.exp(jax.random.uniform(keys[1], (batch,), minval=jnp.log(0.3), maxval=jnp.log(3.3)))
    sizes = jnp.stack([jnp.sqrt(area * ratio), jnp.sqrt(area / ratio)], axis=1)
    sides = jnp.array([height, width], jnp.float32)
    sizes = jnp.minimum(jnp.round(sizes), sides[None])
    first = jnp.floor(jax.random.uniform(keys[2], (batch, 2)) * (sides[None] - sizes + 1))
    is_erased = jax.random.bernoulli(keys[3], probability, (batch, 1))
    return _without(images, first, jnp.where(is_erased, first + sizes, first))


def _without(images: jax.Array, first: jax.Array, last: jax.Array) -> jax.Array:
    """Return the images with zeros in the rows and columns from ``first`` to before ``last``, each ``[batch, 2]``."""

    def inside(axis: int) -> jax.Array:
        positions = jnp.arange(images.shape[1 + axis])[None]
        return (positions >= first[:, axis, None]) & (positions < last[:, axis, None])

    blank = inside(0)[:, :, None, None] & inside(1)[:, None, :, None]
    return jnp.where(blank, 0, images)


def mix_and_smooth(
    batch: tuple[jax.Array, jax.Array], step: jax.Array, key: jax.Array, settings: Regularization
) -> tuple[jax.Array, jax.Array]:
    """Return a batch whose labels are probabilities of the classes, if label smoothing or mixup is on.

    Mixup (Zhang et al. 2018) adds images, and their labels, in pairs: the first image with the last, and so on, since
    the order is random. The whole batch has one weight from Beta(mixup, mixup).
    """
    if not settings.mixup and not settings.label_smoothing:
        return batch
    images, labels = batch
    smoothing = settings.label_smoothing
    probabilities = (1 - smoothing) * jax.nn.one_hot(labels, settings.num_classes) + smoothing / settings.num_classes
    if settings.mixup:
        key = jax.random.fold_in(stream(key, "mixup"), step)
        weight = jax.random.beta(key, settings.mixup, settings.mixup)
        weight = jnp.maximum(weight, 1 - weight)  # the image itself stays the larger part
        images = weight * images + (1 - weight) * images[::-1]
        probabilities = weight * probabilities + (1 - weight) * probabilities[::-1]
    return images, probabilities
