"""Images of the user's own: the result of a function, and arrays in an ``.npz`` file."""

from pathlib import Path
from typing import Any

import numpy as np

from dctps_jax.data.dataset import Dataset, check_numbering
from dctps_jax.errors import UserError
from dctps_jax.npz import read_npz
from dctps_jax.user_functions import call

_FIELD = "config.data.name"
_CONTRACT = "((train_images, train_labels), (test_images, test_labels)) or a dctps_jax.data.Dataset"
# Each array may also have the name that Keras gives it in its files.
_ARRAYS = (
    ("train_images", "x_train"),
    ("train_labels", "y_train"),
    ("test_images", "x_test"),
    ("test_labels", "y_test"),
)


def load_own(path: str, folder: str, image_size: int, seed: int) -> Dataset:
    """Call the function at an import path. Pass each of ``dir``, ``image_size`` and ``seed`` that its signature names.

    It returns uint8 images [n, height, width, channels] and integer labels as ``((train_images, train_labels),
    (test_images, test_labels))``, or a ``Dataset``. Raises UserError if it fails or returns something else.
    """
    found = call(_FIELD, path, {"dir": folder, "image_size": image_size, "seed": seed})
    if isinstance(found, Dataset):
        return found
    try:
        (train_images, train_labels), (test_images, test_labels) = found
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{_FIELD} is {path!r}, which returns {type(found).__name__}; it must return {_CONTRACT}"
        ) from error
    try:
        parts = (train_images, train_labels, test_images, test_labels)
        train_images, train_labels, test_images, test_labels = (np.asarray(part) for part in parts)
    except ValueError as error:  # lists of different lengths
        raise UserError(
            f"{_FIELD} is {path!r}, which returns lists that are no arrays; it must return {_CONTRACT}"
        ) from error
    return make_dataset(path, train_images, train_labels, test_images, test_labels)


def load_npz(path: Path) -> Dataset:
    """Read the arrays train_images, train_labels, test_images, test_labels and, if there, class_names of a file.

    Raises UserError for a missing or damaged file, and for one without these arrays.
    """
    content = "the arrays train_images, train_labels, test_images, test_labels and, if you like, class_names"
    found = read_npz(path, content)
    names = [next((name for name in names if name in found), "") for names in _ARRAYS]
    if "" in names:
        raise UserError(f"{path} holds {', '.join(found) or 'nothing'}; it should hold {content}")
    class_names = tuple(map(str, np.atleast_1d(found["class_names"]))) if "class_names" in found else ()
    train_images, train_labels, test_images, test_labels = (found[name] for name in names)
    return make_dataset(path.name, train_images, train_labels, test_images, test_labels, class_names)


def make_dataset(
    name: str,
    train_images: np.ndarray,
    train_labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    class_names: tuple[str, ...] = (),
) -> Dataset:
    """Return the ``Dataset`` of four arrays. Grey images may lack the axis of channels; labels may be any integers.

    Without ``class_names`` a class is called by its label, and must have training images. Raises UserError for other
    arrays.
    """
    labels = {"train_labels": train_labels, "test_labels": test_labels}
    for part, array in labels.items():
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise UserError(
                f"data set '{name}': {part} is {array.dtype} {list(array.shape)}, but must be integers [n], the "
                "number of a class from 0 for each image"
            )
        if array.size and max(abs(int(array.min())), int(array.max())) >= 2**31:
            raise UserError(f"data set '{name}': {part} runs to {array.max()}; number the classes from 0")
    if not class_names:
        num_classes = 1 + max(int(array.max(initial=-1)) for array in labels.values())
        if train_labels.size and min(int(array.min(initial=0)) for array in labels.values()) >= 0:
            check_numbering(f"data set '{name}'", train_labels, num_classes)
        class_names = tuple(map(str, range(num_classes)))
    images: Any = [array[..., None] if array.ndim == 3 else array for array in (train_images, test_images)]
    train, test = (array.astype(np.int32) for array in labels.values())
    return Dataset(name, images[0], train, images[1], test, class_names)
