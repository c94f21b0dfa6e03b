"""Images that are read while they are used: each dispatch gets a window, the images of its steps, and no more."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dctps_jax.data.batches import Examples, Window, as_trained_on
from dctps_jax.data.encoded import FileImages
from dctps_jax.data.reading_ahead import one_ahead, read_ahead
from dctps_jax.training.placement import Placement
from dctps_jax.training.step_spec import StepSpec, dispatches


@dataclasses.dataclass(frozen=True)
class StreamedImages:
    """Images in memory, in a memory map or in files, which are brought to the devices when they are needed.

    Every host reads the part of each batch that its own devices use. ``num_processes`` other processes read files; with
    0, threads of this process do.
    """

    images: np.ndarray | FileImages
    labels: np.ndarray
    placement: Placement
    num_processes: int = 0

    def windows(self, order: np.ndarray, step: int, spec: StepSpec) -> Iterator[Window]:
        """Yield the window of each dispatch from ``step`` to the end of its epoch.

        ``order`` has the rows in the order of the epoch. The windows depend on it and on the step only, so that a run
        that is resumed at any step gets the same images as a run without a stop.
        """
        epoch, position = divmod(step, spec.steps_per_epoch)
        taken = order[position * spec.batch_size : spec.steps_per_epoch * spec.batch_size]
        lengths = [length for length, _ in dispatches(step, spec)]
        return one_ahead(self._windows(as_trained_on(self.images, epoch), taken.reshape(-1, spec.batch_size), lengths))

    def _windows(self, images: Any, batches: np.ndarray, lengths: list[int]) -> Iterator[Window]:
        own = batches[:, self._own_columns(batches.shape[1])]
        blocks = read_ahead(images, own.reshape(-1), own.shape[1], self._processes)
        first = 0
        for length in lengths:
            rows = own[first : first + length]
            pixels = _fill(np.empty((rows.size, *self.images.shape[1:]), np.uint8), blocks)
            pixels = pixels.reshape(*rows.shape, -1)
            yield Window(self._put(pixels, 1), self._put(self.labels[rows], 1), self.images.shape[1:])
            first += length

    def batches(self, rows: np.ndarray, batch_size: int) -> Iterator[tuple[Examples, jax.Array]]:
        """Yield the images in ``rows`` in batches to evaluate, and which images of each batch count.

        A last partial batch is filled up with images that do not count.
        """
        return one_ahead(self._batches(rows, batch_size))

    def _batches(self, rows: np.ndarray, batch_size: int) -> Iterator[tuple[Examples, jax.Array]]:
        positions = np.arange(-(-len(rows) // batch_size) * batch_size).reshape(-1, batch_size)
        own = positions[:, self._own_columns(batch_size)]
        valid = own < len(rows)
        taken = np.asarray(rows)[np.minimum(own, len(rows) - 1)]
        blocks = read_ahead(self.images, taken.reshape(-1), own.shape[1], self._processes)
        for batch_rows, batch_valid in zip(taken, valid, strict=True):
            images = _fill(np.empty((len(batch_rows), *self.images.shape[1:]), np.uint8), blocks)
            batch = Examples(self._put(images), self._put(self.labels[batch_rows]))
            yield batch, self._put(batch_valid)

    def abstract_window(self, num_steps: int, batch_size: int) -> Window:
        """Return a window of ``num_steps`` steps without its arrays."""
        num_pixels = int(np.prod(self.images.shape[1:]))
        pixels = self._abstract((num_steps, batch_size, num_pixels), np.uint8, 1)
        return Window(pixels, self._abstract((num_steps, batch_size), np.int32, 1), self.images.shape[1:])

    def abstract_batch(self, batch_size: int) -> tuple[Examples, Any]:
        """Return a batch to evaluate without its arrays."""
        images = self._abstract((batch_size, *self.images.shape[1:]), np.uint8)
        labels, valid = (self._abstract((batch_size,), dtype) for dtype in (np.int32, np.bool_))
        return Examples(images, labels), valid

    @property
    def _processes(self) -> int:
        return self.num_processes if isinstance(self.images, FileImages) else 0

    def _own_columns(self, batch_size: int) -> slice:
        """Return the part of a batch that lies on the devices of this host."""
        parts = self.placement.batch.addressable_devices_indices_map((batch_size,)).values()
        columns = sorted({number for (part,) in filter(None, parts) for number in range(batch_size)[part]})
        if columns != [*range(columns[0], columns[-1] + 1)]:
            raise ValueError("the devices of a host are not next to each other in the mesh")
        return slice(columns[0], columns[-1] + 1)

    def _sharding(self, axis: int) -> NamedSharding:
        """Return the sharding of an array whose ``axis`` is along the batch."""
        (name,) = self.placement.batch.spec
        return NamedSharding(self.placement.batch.mesh, PartitionSpec(*[None] * axis, name))

    def _put(self, array: np.ndarray, axis: int = 0) -> jax.Array:
        return jax.make_array_from_process_local_data(self._sharding(axis), array)

    def _abstract(self, shape: tuple[int, ...], dtype: Any, axis: int = 0) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self._sharding(axis))


def _fill(images: np.ndarray, blocks: Iterator[np.ndarray]) -> np.ndarray:
    """Fill an array with the images of the next blocks. It takes whole blocks."""
    filled = 0
    while filled < len(images):
        block = next(blocks)
        images[filled : filled + len(block)] = block
        filled += len(block)
    return images
