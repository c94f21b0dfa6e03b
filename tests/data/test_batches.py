"""Batches on the device: the split, the order of an epoch, and how they make a step's batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dctps_jax.data.batches import (
    Examples,
    Normalization,
    epoch_permutation,
    normalization_of,
    normalize,
    split_training,
    training_batch,
)
from dctps_jax.data.dataset import Dataset
from dctps_jax.errors import UserError

PLAIN = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def numbered(count, size=2, **options):
    """A data set whose images and labels say which one they are."""
    numbers = np.arange(count)
    images = np.zeros((count, size, size, 3), np.uint8)
    images[..., 0], images[..., 1] = (numbers % 256)[:, None, None], (numbers // 256)[:, None, None]
    names = tuple(str(number) for number in numbers)
    return Dataset("numbered", images, numbers.astype(np.int32), images[:1], np.zeros(1, np.int32), names, **options)


def numbers_in(images):
    return np.asarray(images[:, 0, 0, 0]).astype(int) + 256 * np.asarray(images[:, 0, 0, 1]).astype(int)


def noise(count, size=8, seed=0):
    return np.random.default_rng(seed).integers(1, 256, (count, size, size, 3), np.uint8)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([2, 3, 401]), st.floats(0.01, 0.99), st.integers(0, 2**32 - 1))
def test_split_is_exact(count, fraction, seed):
    if not 0 < round(count * fraction) < count:
        with pytest.raises(UserError, match=r"data\.train_fraction is .* at least one"):
            split_training(count, fraction, seed)
        return
    train, validation = split_training(count, fraction, seed)
    assert len(train) == round(count * fraction)
    assert sorted([*train, *validation]) == list(range(count))
    for part in (train, validation):
        np.testing.assert_array_equal(part, np.sort(part))


def test_split_is_random_and_by_seed():
    parts = {seed: split_training(1000, 0.9, seed)[1] for seed in (0, 1, 2)}
    np.testing.assert_array_equal(parts[0], split_training(1000, 0.9, 0)[1])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert len(set(parts[one]) & set(parts[other])) < 30  # 10 expected
    assert 400 < parts[0].mean() < 600  # from everywhere, not the last tenth


def test_normalization_is_that_of_the_training_split():
    dataset = Dataset("noise", noise(50), np.zeros(50, np.int32), noise(1), np.zeros(1, np.int32), ("a",))
    train = Examples(dataset.train_images[:30], dataset.train_labels[:30])
    mean, std = normalization_of(dataset, train)
    pixels = train.images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, pixels.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std((0, 1, 2)), rtol=1e-12)
    normalized = np.asarray(normalize(jnp.asarray(train.images), Normalization(mean, std)))
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(normalized.std((0, 1, 2)), 1, atol=1e-5)


def test_published_moments_come_first():
    dataset = numbered(10, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    train = Examples(dataset.train_images[:5], dataset.train_labels[:5])
    assert normalization_of(dataset, train) == Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_constant_channel_is_refused():
    dataset = numbered(10)
    train = Examples(dataset.train_images[:5], dataset.train_labels[:5])
    with pytest.raises(UserError, match="'numbered' are constant in a channel"):
        normalization_of(dataset, train)


@settings(max_examples=8, deadline=None)
@given(st.sampled_from([0, 2**32 - 1]), st.integers(0, 10_000))
def test_order_is_a_permutation_by_seed_and_epoch(seed, epoch):
    def order(seed, epoch):
        return np.asarray(epoch_permutation(jnp.asarray(epoch, jnp.int32), key=jax.random.key(seed), count=97))

    np.testing.assert_array_equal(np.sort(order(seed, epoch)), np.arange(97))
    np.testing.assert_array_equal(order(seed, epoch), order(seed, epoch))
    assert np.mean(order(seed, epoch) == order(seed, epoch + 1)) < 0.2
    assert np.mean(order(seed, epoch) == order((seed + 1) % 2**32, epoch)) < 0.2


def batch_of(train, step, *, seed=0, augmented=False, batch_size=4, order=None, normalization=PLAIN):
    steps_per_epoch = len(train.labels) // batch_size
    if order is None:
        epoch = jnp.asarray(step // steps_per_epoch, jnp.int32)
        order = epoch_permutation(epoch, key=jax.random.key(seed), count=len(train.labels))
    return training_batch(
        train, order, jnp.asarray(step, jnp.int32), batch_size=batch_size, steps_per_epoch=steps_per_epoch,
        normalization=normalization, augmented=augmented, key=jax.random.key(seed),
    )  # fmt: skip


def device_split(count, size=8):
    return Examples(jnp.asarray(noise(count, size)), jnp.arange(count))


def test_an_epoch_visits_each_image_once():
    train = device_split(14)
    for epoch in (0, 5):
        order = epoch_permutation(jnp.asarray(epoch, jnp.int32), key=jax.random.key(0), count=14)
        batches = [batch_of(train, 3 * epoch + position) for position in range(3)]
        labels = np.concatenate([labels for _, labels in batches])
        np.testing.assert_array_equal(labels, np.asarray(order)[:12])
        for images, labels in batches:
            expected = np.asarray(train.images)[np.asarray(labels)].astype(np.float32) / 255
            np.testing.assert_allclose(images, expected, rtol=1e-6)


def test_images_in_rows_are_the_same_images():
    train, rows = device_split(14), jnp.asarray([3, 13, 0])
    jax.tree.map(np.testing.assert_array_equal, train.in_rows().at(rows), train.at(rows))


def test_augmentation_is_keyed_by_seed_and_step():
    train, order = device_split(8, size=16), jnp.arange(8)
    batch = np.asarray(batch_of(train, 0, augmented=True, order=order)[0])
    np.testing.assert_array_equal(batch, batch_of(train, 0, augmented=True, order=order)[0])
    # Steps 0, 2 and 4 are the same images, in other epochs.
    others = [(2, 0), (4, 0), (0, 1), (0, 2**32 - 1)]
    for step, seed in others:
        images, labels = batch_of(train, step, seed=seed, augmented=True, order=order)
        np.testing.assert_array_equal(labels, [0, 1, 2, 3])
        assert not np.array_equal(images, batch)


def test_border_is_black_before_normalisation():
    white = Examples(jnp.full((64, 4, 4, 3), 255, jnp.uint8), jnp.zeros(64, jnp.int32))
    moments = Normalization((0.5, 0.25, 0.0), (0.5, 0.25, 2.0))
    images = batch_of(white, 0, augmented=True, batch_size=64, normalization=moments)[0]
    pixels = {tuple(pixel) for pixel in np.asarray(images).reshape(-1, 3).tolist()}
    assert pixels == {(1.0, 3.0, 0.5), (-1.0, -1.0, 0.0)}
