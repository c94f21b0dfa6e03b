"""Make training and evaluation batches on the device.

The images lie there whole, or come in windows of some steps. All random choices follow from the seed and the step.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dctps_jax.data.augmentation import Crops, augment, draw_crops
from dctps_jax.data.dataset import Dataset
from dctps_jax.data.encoded import FileImages
from dctps_jax.data.regularization import NOTHING, Regularization, blank_out, mix_and_smooth
from dctps_jax.errors import UserError
from dctps_jax.ops.fusion import materialized
from dctps_jax.seeds import stream

_BLOCK = 1024


class Examples(NamedTuple):
    """Images uint8 ``[n, height, width, channels]`` and labels int32 ``[n]``, in numpy or on the devices."""

    images: jax.Array | np.ndarray
    labels: jax.Array | np.ndarray

    def at(self, rows: jax.Array | np.ndarray) -> "Examples":
        return Examples(self.images[rows], self.labels[rows])

    def in_rows(self) -> "ExamplesInRows":
        return ExamplesInRows(self.images.reshape(len(self.images), -1), self.labels, self.images.shape[1:])

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield all images in blocks."""
        for start in range(0, len(self.labels), _BLOCK):
            yield np.asarray(self.images[start : start + _BLOCK])


class Subset(NamedTuple):
    """The images and labels in some rows of a data set. They are read or decoded when they are needed."""

    images: np.ndarray | FileImages
    all_labels: np.ndarray
    rows: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        return self.all_labels[self.rows]

    def at(self, numbers: np.ndarray, epoch: int | None = None) -> Examples:
        """Return some images of the subset; with an ``epoch``, as that epoch trains on them."""
        rows = self.rows[numbers]
        images = self.images if epoch is None else as_trained_on(self.images, epoch)
        return Examples(images[rows], self.all_labels[rows])

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield all images of the subset in blocks."""
        for start in range(0, len(self.rows), _BLOCK):
            yield self.images[self.rows[start : start + _BLOCK]]


def as_trained_on(images: Any, epoch: int) -> Any:
    """Return images as an epoch trains on them: files may be cropped in another way in each epoch."""
    return images.in_epoch(epoch) if isinstance(images, FileImages) else images


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExamplesInRows:
    """Examples as they lie on the devices: each image is a row of numbers, uint8 ``[n, height · width · channels]``.

    On a TPU, XLA (JAX 0.10.2) picks rows where they lie. To pick from four dimensions, it copies the whole data set
    into another layout in each dispatch, which takes four times the memory (``tests/benchmarks/test_tpu.py``).
    """

    pixels: jax.Array | np.ndarray
    labels: jax.Array | np.ndarray
    image_shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def at(self, rows: jax.Array) -> Examples:
        return Examples(self.pixels[rows].reshape(len(rows), *self.image_shape), self.labels[rows])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Window:
    """The examples of some steps, in the order in which the steps take them.

    ``pixels`` is uint8 ``[steps, batch, height · width · channels]``, ``labels`` int32 ``[steps, batch]``.
    """

    pixels: jax.Array
    labels: jax.Array
    image_shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def of_step(self, number: jax.Array) -> Examples:
        """Return the examples of a step; ``number`` counts from the first step of the window."""
        pixels, labels = (jax.lax.dynamic_index_in_dim(part, number, 0, False) for part in (self.pixels, self.labels))
        return Examples(pixels.reshape(len(labels), *self.image_shape), labels)


class Normalization(NamedTuple):
    """Mean and standard deviation of each channel, for pixels scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def split_training(count: int, train_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split ``count`` images at random, by seed, into rows to train on and rows to validate on.

    ``round(count · train_fraction)`` rows are for training. Both arrays ascend, so that a memory-mapped file is read
    from front to back.
    """
    num_train = round(count * train_fraction)
    if not 0 < num_train < count:
        raise UserError(
            f"config.data.train_fraction is {train_fraction}, which leaves {num_train} of {count} images for training; "
            "both training and validation need at least one"
        )
    shuffled = np.asarray(jax.random.permutation(stream(seed, "split"), count))
    return np.sort(shuffled[:num_train]), np.sort(shuffled[num_train:])


def normalization_of(dataset: Dataset, train: Examples | Subset) -> Normalization:
    """Return the data set's published mean and deviation; if it has none, compute them from the training split."""
    if dataset.mean is not None and dataset.std is not None:
        return Normalization(dataset.mean, dataset.std)
    # Counts of the 256 pixel values give exact moments without a float copy of the images.
    counts = np.zeros((dataset.channels, 256), np.int64)
    for block in train.blocks():
        for channel in range(dataset.channels):
            counts[channel] += np.bincount(block[..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    mean = [float(np.average(values, weights=count)) for count in counts]
    std = [
        float(np.sqrt(np.average((values - middle) ** 2, weights=count)))
        for middle, count in zip(mean, counts, strict=True)
    ]
    if min(std) < 1e-6:
        raise UserError(f"the training images of {dataset.name!r} are constant in a channel; check the files")
    return Normalization(tuple(mean), tuple(std))


def epoch_permutation(epoch: int | jax.Array, *, key: jax.Array, count: int) -> jax.Array:
    """Return the order in which an epoch visits ``count`` training images: a function of key and epoch."""
    return _permutation(jax.random.fold_in(stream(key, "order"), epoch), count)


_permutation = jax.jit(jax.random.permutation, static_argnums=1)


def normalize(images: jax.Array, normalization: Normalization) -> jax.Array:
    """Turn uint8 images into float32 with zero mean and unit deviation in each channel."""
    mean, std = (jnp.asarray(moment, jnp.float32)[None, None, None] for moment in normalization)
    return (images.astype(jnp.float32) / 255 - mean) / std


def training_batch(
    train: Examples | ExamplesInRows | Window,
    epoch_rows: jax.Array,
    step: jax.Array,
    *,
    batch_size: int,
    steps_per_epoch: int,
    normalization: Normalization,
    augmented: bool,
    key: jax.Array,
    regularization: Regularization = NOTHING,
    crops: Crops | None = None,
    only_flips: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Return the normalised images and labels of one step.

    ``epoch_rows`` has the rows of ``train`` in the order of the step's epoch. A window has its images in this order
    already; it begins at a step of the epoch that is a multiple of the window's length. ``crops`` are the crops of the
    step, if they are drawn already. With ``only_flips`` images are not cropped again.
    """
    position = step % steps_per_epoch
    if isinstance(train, Window):
        picked = train.of_step(position % len(train.labels))
    else:
        picked = train.at(jax.lax.dynamic_slice(epoch_rows, (position * batch_size,), (batch_size,)))
    batch = make_batch(
        picked,
        step,
        normalization=normalization,
        augmented=augmented,
        key=key,
        regularization=regularization,
        crops=crops,
        only_flips=only_flips,
    )
    return mix_and_smooth(batch, step, key, regularization)


def evaluation_batch(
    data: Examples | ExamplesInRows, rows: jax.Array, start: jax.Array, *, batch_size: int
) -> tuple[Examples, jax.Array]:
    """Return a batch of the images of ``data`` at ``rows[start:]``, and which of them are valid.

    A last partial batch is filled up with images that are not valid.
    """
    positions = start + jnp.arange(batch_size)
    return data.at(rows[jnp.minimum(positions, len(rows) - 1)]), positions < len(rows)


def make_batch(
    picked: Examples,
    step: jax.Array,
    *,
    normalization: Normalization,
    augmented: bool,
    key: jax.Array,
    regularization: Regularization = NOTHING,
    crops: Crops | None = None,
    only_flips: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Augment and normalise the images picked for a step. Labels stay as they are."""
    images, labels = jnp.asarray(picked.images), jnp.asarray(picked.labels)
    if augmented:
        images = augment(images, crops or draw_crops(step, key=key, batch_size=len(images)), only_flips)
    # Stored, since XLA (JAX 0.10.2) would augment them again in every operation that reads them: see ops/fusion.py.
    return materialized(blank_out(normalize(images, normalization), step, key, regularization)), labels
