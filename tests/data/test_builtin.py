import numpy as np
from sklearn.datasets import load_digits

from dctps_jax.data import load


def test_digits_split_is_stratified_and_complete():
    dataset = load("digits")
    assert dataset.train_images.shape == (1437, 32, 32, 3)
    assert dataset.test_images.shape == (360, 32, 32, 3)
    assert dataset.class_names == tuple("0123456789")
    train, test = np.bincount(dataset.train_labels), np.bincount(dataset.test_labels)
    np.testing.assert_array_equal(train + test, np.bincount(load_digits(return_X_y=True)[1]))
    assert np.all(np.abs(test - (train + test) / 5) <= 1)
    assert dataset.mean is None
    # The split is part of what a published figure stands for: it must never change.
    assert dataset.test_labels[:10].tolist() == [0, 2, 4, 7, 1, 6, 8, 9, 5, 3]


def test_digits_keep_their_look():
    dataset = load("digits")
    originals, labels = load_digits(return_X_y=True)
    # The mean over a block of 4 × 4 pixels gives the original pixel back, apart from the bilinear blur.
    blocks = dataset.train_images[..., 0].reshape(-1, 8, 4, 8, 4).mean((2, 4)).reshape(-1, 64)
    wanted = originals * (255 / 16)
    for image, label in zip(blocks[:20], dataset.train_labels[:20], strict=True):
        nearest = int(np.argmin(((wanted - image) ** 2).sum(1)))
        assert labels[nearest] == label
        assert np.corrcoef(wanted[nearest], image)[0, 1] > 0.95
    assert dataset.train_images.max() == 255 and dataset.train_images.min() == 0
    np.testing.assert_array_equal(dataset.train_images[..., 0], dataset.train_images[..., 2])


def test_digits_are_the_same_every_time():
    one, two = load("digits"), load("digits")
    np.testing.assert_array_equal(one.test_images, two.test_images)
    np.testing.assert_array_equal(one.train_labels, two.train_labels)


def test_synthetic():
    one, two = load("synthetic"), load("synthetic", image_size=8)
    assert one.train_images.shape == (2048, 32, 32, 3) and one.test_images.shape == (512, 32, 32, 3)
    assert two.train_images.shape == (2048, 8, 8, 3)
    assert set(one.train_labels) == set(range(10))
    np.testing.assert_array_equal(one.train_images, load("synthetic").train_images)
