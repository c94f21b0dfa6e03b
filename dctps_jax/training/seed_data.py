"""The data of one seed: the images, the rows to train on and to validate on, and what tells them from other data."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dctps_jax.data.batches import Subset, split_training
from dctps_jax.data.dataset import Dataset
from dctps_jax.distributed.agreement import check_equal, on_first
from dctps_jax.runs.bound_data import check_same_data, describe_data, describe_split
from dctps_jax.runs.checkpoint import Saved
from dctps_jax.training.from_config import load_data
from dctps_jax.training.placement import Placement
from dctps_jax.training.progress import announced
from dctps_jax.training.streaming import is_streamed, max_decoded_bytes


class SeedData(NamedTuple):
    """``images_described`` and ``split_described`` say which data they are: numbers, and digests of the contents."""

    dataset: Dataset
    is_streamed: bool
    train_rows: np.ndarray
    validation_rows: np.ndarray
    images_described: dict[str, Any]
    split_described: dict[str, str]

    @property
    def described(self) -> dict[str, Any]:
        return self.images_described | self.split_described

    @property
    def train_split(self) -> Subset:
        return Subset(self.dataset.train_images, self.dataset.train_labels, self.train_rows)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width and channels of each image."""
        return self.dataset.train_images.shape[1:]


def read_data(config: Any, workdir: Path, saved: Saved | None, placement: Placement) -> SeedData:
    """Read the data that ``config`` names and split them.

    Raises :class:`~dctps_jax.errors.UserError` for data other than those that the run in ``workdir``, with the
    checkpoint ``saved``, began with.
    """
    known = None if saved is None else saved.record.get("data")
    with announced("reading the images …"):
        dataset = load_data(config, max_decoded_bytes(config, placement, (known or {}).get("fingerprint", "")))
    train_rows, validation_rows = split_training(len(dataset.train_labels), config.data.train_fraction, config.seed)
    data = SeedData(
        dataset,
        is_streamed(config, dataset, placement),
        train_rows,
        validation_rows,
        describe_data(dataset),
        describe_split(train_rows, validation_rows),
    )
    check_equal("the images", "give all hosts the same images", dict, data.described)
    on_first(check_same_data, workdir, data.described, known)
    return data
