"""Decide whether the images of a run lie on its devices, or are streamed: read while they are used."""

import contextlib
import math
import os
from pathlib import Path
from typing import Any

from dctps_jax.data.batches import Examples
from dctps_jax.data.dataset import FILES, Dataset
from dctps_jax.errors import UserError
from dctps_jax.training.placement import Placement
from dctps_jax.training.streamed_images import StreamedImages

# "auto" keeps images on the devices if they take up to this part of their memory.
MAX_SHARE = 0.25
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def max_resident_bytes(config: Any, placement: Placement) -> float:
    """Return how many bytes of images may lie on each device; if there are more, they are streamed."""
    if crops_files(config) or config.data.streaming == "on":
        return 0
    if config.data.streaming == "off":
        return math.inf
    return MAX_SHARE * memory_of_a_device(placement)


def max_decoded_bytes(config: Any, placement: Placement, began_with: str) -> float:
    """Return how many bytes of images are decoded from files once; if there are more, each use decodes them again.

    ``began_with`` is the fingerprint of the data that a run began with, "" for a new run: a resumed run continues as it
    began. Raises :class:`~dctps_jax.errors.UserError` if its config forbids that.
    """
    if not began_with or crops_files(config):
        return max_resident_bytes(config, placement)
    if not began_with.startswith(FILES):
        return math.inf
    if config.data.streaming == "off":
        raise UserError(
            "config.data.streaming is 'off', but the run began to read its files while it trains; leave it at 'auto' "
            "or 'on', or choose another directory"
        )
    return 0


def is_streamed(config: Any, dataset: Dataset, placement: Placement) -> bool:
    """Return whether the images of a run are read while they are used."""
    return not dataset.is_decoded or dataset.num_bytes > max_resident_bytes(config, placement)


def place_images(config: Any, dataset: Dataset, placement: Placement, streams: bool) -> list[Any]:
    """Return the training and the test images: on all devices as uint8, or to be brought there when they are used."""
    pairs = (dataset.train_images, dataset.train_labels), (dataset.test_images, dataset.test_labels)
    if streams:
        return [StreamedImages(images, labels, placement, config.data.processes) for images, labels in pairs]
    return [placement.put(Examples(images, labels).in_rows()) for images, labels in pairs]


def crops_files(config: Any) -> bool:
    """Return whether images are cropped while they are decoded, in another way in each epoch."""
    return config.data.crop == "random_resized"


def memory_of_a_device(placement: Placement) -> float:
    """Return the bytes of memory of each device. CPU devices share the memory of the machine, or of its container."""
    devices = placement.replicated.addressable_devices
    if placement.platform != "cpu":
        limits = [(device.memory_stats() or {}).get("bytes_limit", math.inf) for device in devices]
        return min(limits)
    found = [float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    for path in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or it says "max"
            found.append(float(path.read_text()))
    return min(found) / len(devices)
