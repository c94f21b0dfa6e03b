import re

import numpy as np
import pytest

from dctps_jax.data import Dataset
from dctps_jax.errors import UserError


def make(**changes):
    fields = {
        "name": "toy",
        "train_images": np.zeros((3, 8, 8, 3), np.uint8),
        "train_labels": np.array([0, 1, 1], np.int32),
        "test_images": np.zeros((2, 8, 8, 3), np.uint8),
        "test_labels": np.array([1, 0], np.int32),
        "class_names": ("cat", "dog"),
    }
    return Dataset(**(fields | changes))


def test_properties():
    dataset = make()
    assert (dataset.num_classes, dataset.image_size) == (2, 8)
    assert dataset.mean is None and dataset.std is None
    assert dataset.summary == "3 training and 2 test images of 2 classes, 8 x 8 pixels, RGB"
    assert make(class_names=("cat", "dog", "owl")).untrained_classes == [2] and dataset.untrained_classes == []


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"train_images": np.zeros((3, 8, 8, 3), np.float32)}, ["train_images is float32", "uint8"]),
        ({"train_images": np.zeros((3, 8, 8, 2), np.uint8)}, ["train_images", "[3, 8, 8, 2]", "1 or 3 channels"]),
        ({"test_images": np.zeros((2, 8, 8, 1), np.uint8)}, ["test_images is [8, 8, 1]", "train_images [8, 8, 3]"]),
        ({"test_images": np.zeros((2, 4, 4, 3), np.uint8)}, ["test_images is [4, 4, 3]", "train_images [8, 8, 3]"]),
        ({"train_labels": np.zeros(3, np.int64)}, ["train_labels is int64", "int32"]),
        ({"test_labels": np.zeros(3, np.int32)}, ["test_labels is int32 [3]", "[2]"]),
        ({"test_labels": np.array([0, 2], np.int32)}, ["test_labels runs from 0 to 2", "0 to 1"]),
        ({"train_labels": np.array([0, -1, 1], np.int32)}, ["train_labels runs from -1 to 1", "subtract the smallest"]),
        (
            {"test_images": np.zeros((0, 8, 8, 3), np.uint8), "test_labels": np.zeros(0, np.int32)},
            ["test part holds no image"],
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, parts):
    with pytest.raises(UserError) as caught:
        make(**changes)
    for part in ["'toy'", *parts]:
        assert part in str(caught.value)


def changed(array, index, value):
    array = array.copy()
    array[index] = value
    return array


def test_fingerprint_is_of_the_content_alone():
    dataset = make()
    assert re.fullmatch("[0-9a-f]{64}", dataset.fingerprint)
    turned = np.asfortranarray(dataset.train_images)
    assert make(name="other", train_images=turned, mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0)).fingerprint == (
        dataset.fingerprint
    )


@pytest.mark.parametrize("part", ["train", "test"])
def test_fingerprint_changes_with_any_part_of_the_content(part):
    dataset = make()
    images, labels = getattr(dataset, f"{part}_images"), getattr(dataset, f"{part}_labels")
    others = [
        make(**{f"{part}_images": changed(images, (-1, 7, 7, 2), 1)}),
        make(**{f"{part}_labels": changed(labels, 0, 1 - labels[0])}),
        make(**{f"{part}_images": images[:-1], f"{part}_labels": labels[:-1]}),
        make(class_names=("cat", "doge")),
        make(class_names=("dog", "cat")),
        make(train_images=np.zeros((3, 4, 4, 3), np.uint8), test_images=np.zeros((2, 4, 4, 3), np.uint8)),
    ]
    assert len({other.fingerprint for other in [dataset, *others]}) == len(others) + 1
