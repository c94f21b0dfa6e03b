"""Activations in rows: one row for each channel, which holds the positions of the whole batch one after another.

A weight of a convolution then connects a row of the inputs, from some start on, with a row of the outputs. Its work is
one multiply-add of two long rows. With strides there is a row for each channel and phase: it holds inputs that are a
stride apart side by side.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dctps_jax.ops.fusion import made_apart, orders_are_known, stored_in_order, varying_as, zero_after
from dctps_jax.ops.geometry import Geometry

# Inner products of long rows are sums over pieces of this many numbers. They lose fewer digits than one long sum. The
# lengths of all rows are multiples of it.
PIECE = 64
# Rows of at most this many numbers, as in linear layers, are added piece by piece, and multiplied in blocks of many
# rows. With XLA's CPU backend (JAX 0.10.2) each round of a loop takes 30 ns more, unless its body moves less than 1 KiB
# and the loop is compiled as one function. `benchmarks/rows.py` times both.
SHORT_ROW = 256
# The products of two short rows are first added up to this many sums, a vector register of AVX-512. With 8 and with 32,
# a step of `benchmarks/masked_mlp.py` took longer.
LANES = 16
# Rows longer than this get one more piece if they consist of whole pieces: see `Layout.length`.
LONG_ROW = 2048
# From this many rows on, transpositions of rows are not fused with other operations.
MANY_ROWS = 2048


class Places(NamedTuple):
    """The row of each weight and its first number in that row, int32 ``[nnz]`` each."""

    row: jax.Array
    start: jax.Array

    def moved(self, by: int) -> "Places":
        """Return the places ``by`` numbers after these."""
        return Places(self.row, self.start + by)


class Layout(NamedTuple):
    """How the inputs ``[batch, *spatial, channels]`` and the outputs of a convolution lie in rows.

    An image takes :attr:`extents` positions in both kinds of rows. The outputs fill only some of the positions. The
    others are zero or never read.
    """

    geometry: Geometry
    inputs: tuple[int, ...]

    @property
    def outputs(self) -> tuple[int, ...]:
        return self.geometry.output_spatial(self.inputs[1:-1])

    @property
    def extents(self) -> tuple[int, ...]:
        """The positions of each dimension: the output positions, plus the strides that a kernel reaches beyond them."""
        zipped = zip(self.outputs, self.geometry.size, self.geometry.strides, strict=True)
        return tuple(count + (width - 1) // stride for count, width, stride in zipped)

    @property
    def steps(self) -> tuple[int, ...]:
        """The distance in a row between neighbours in each dimension."""
        return tuple(math.prod(self.extents[dimension + 1 :]) for dimension in range(len(self.extents)))

    @property
    def positions(self) -> int:
        return self.inputs[0] * math.prod(self.extents)

    @property
    def reach(self) -> int:
        """The largest start of a weight in a row of inputs."""
        widths = zip(self.geometry.size, self.geometry.strides, self.steps, strict=True)
        return sum((width - 1) // stride * step for width, stride, step in widths)

    @property
    def length(self) -> int:
        """How many numbers of a row each weight reads: all up to the last output, rounded up to whole pieces."""
        needed = self.positions - self.reach
        pieces = max(1, -(-needed // PIECE))
        # Long rows that are a power of two apart fall on the same places of the cache. With 4096 positions of 1024
        # channels, a step took 8 % longer without one more piece. With 128 positions it took a quarter longer with one.
        return PIECE * (pieces + (needed % PIECE == 0 and needed > LONG_ROW))

    @property
    def is_short(self) -> bool:
        """Whether these are short rows of a layer without spatial dimensions."""
        return not self.extents and self.length <= SHORT_ROW

    def rows_of_inputs(self, inputs: jax.Array, after: jax.Array) -> jax.Array:
        """Return the rows ``[phases · channels, reach + length]``. Long rows are made after the array ``after``."""
        strides, rank = self.geometry.strides, len(self.extents)
        widths = [
            (low, stride * extent - length - low, 0)
            for (low, _), stride, extent, length in zip(
                self.geometry.pads, strides, self.extents, self.inputs[1:-1], strict=True
            )
        ]

        def padded() -> jax.Array:
            images = lax.pad(inputs, jnp.zeros((), inputs.dtype), [(0, 0, 0), *widths, (0, 0, 0)])
            apart = [size for pair in zip(self.extents, strides, strict=True) for size in pair]
            phases = images.reshape(self.inputs[0], *apart, self.inputs[-1])
            phases = phases.transpose(0, *range(1, 2 * rank + 1, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1)
            return self._columns(phases, self.reach + self.length)

        return self._transposed(padded, after)

    def inputs_of_rows(self, rows: jax.Array) -> jax.Array:
        """Return the inputs that lie in ``rows``."""
        strides, rank, zero = self.geometry.strides, len(self.extents), jnp.zeros((), rows.dtype)
        order = [
            index for pair in zip(range(1, rank + 1), range(rank + 1, 2 * rank + 1), strict=True) for index in pair
        ]
        extents = [stride * extent for stride, extent in zip(strides, self.extents, strict=True)]
        widths = [
            (-low, low + length - extent, 0)
            for (low, _), extent, length in zip(self.geometry.pads, extents, self.inputs[1:-1], strict=True)
        ]

        def cropped(columns: jax.Array) -> jax.Array:
            phases = columns[: self.positions].reshape(self.inputs[0], *self.extents, *strides, self.inputs[-1])
            padded = phases.transpose(0, *order, 2 * rank + 1).reshape(self.inputs[0], *extents, self.inputs[-1])
            return lax.pad(padded, zero, [(0, 0, 0), *widths, (0, 0, 0)])

        return self._laid_out(cropped, rows)

    def rows_of_outputs(self, outputs: jax.Array) -> jax.Array:
        """Return the rows ``[channels, length]``."""
        widths = [(0, extent - count, 0) for extent, count in zip(self.extents, self.outputs, strict=True)]

        def padded() -> jax.Array:
            images = lax.pad(outputs, jnp.zeros((), outputs.dtype), [(0, 0, 0), *widths, (0, 0, 0)])
            return self._columns(images, self.length)

        return self._transposed(padded, outputs)

    def outputs_of_rows(self, rows: jax.Array) -> jax.Array:
        """Return the outputs that lie in ``rows``."""

        def cropped(columns: jax.Array) -> jax.Array:
            widths = [(0, self.positions - self.length, 0), (0, 0, 0)]
            columns = lax.pad(columns, jnp.zeros((), rows.dtype), widths)
            images = columns.reshape(self.inputs[0], *self.extents, len(rows))
            return images[:, *(slice(count) for count in self.outputs)]

        return self._laid_out(cropped, rows)

    def _columns(self, images: jax.Array, count: int) -> jax.Array:
        """Return ``count`` positions of all images in a row, with their channels; missing positions are zero."""
        columns = images.reshape(self.positions, math.prod(images.shape) // max(1, self.positions))
        return lax.pad(columns, jnp.zeros((), columns.dtype), [(0, count - self.positions, 0), (0, 0, 0)])

    def _transposed(self, make: Callable[[], jax.Array], after: jax.Array) -> jax.Array:
        """Return the rows ``make().T``: stored as rows, or made apart after the array ``after``."""
        if self.is_short and orders_are_known() and jax.eval_shape(make).shape[1] < MANY_ROWS:
            return stored_in_order(make().T, 0, 1)
        return made_apart(make, after).T

    def _laid_out(self, crop: Callable[[jax.Array], jax.Array], rows: jax.Array) -> jax.Array:
        """Return ``crop(rows.T)``, with as many channels as there are rows."""
        columns = rows.T
        # If a transposition is fused with the next operation, it goes through the rows number by number. Alone it is
        # done in blocks. With 4096 rows of 4096 numbers, transposing and adding took 48 ms of a CPU instead of 144;
        # with 1024 rows it took 14 ms instead of 8.
        if len(rows) >= MANY_ROWS:
            return made_apart(lambda: crop(columns), after=columns)
        return stored_in_order(crop(columns), 1, 0) if self.is_short else crop(columns)


def add_rows(
    shape: tuple[int, int], length: int, values: jax.Array, source: jax.Array, taken: Places, put: Places
) -> jax.Array:
    """Return rows of ``shape``. Each weight adds ``length`` numbers of ``source``, times its value, to one of them.

    It takes them at ``taken`` and puts them at ``put``.
    """

    width = PIECE if length % PIECE == 0 and length <= SHORT_ROW else length

    def add(rows: jax.Array, weight: tuple[jax.Array, Places, Places]) -> tuple[jax.Array, None]:
        value, take_at, put_at = weight
        piece = lax.dynamic_slice(source, take_at, (1, width))
        before = lax.dynamic_slice(rows, put_at, (1, width))
        return lax.dynamic_update_slice(rows, before + value * piece, put_at), None

    dtype = jnp.result_type(values, source)
    # At the start of the program XLA (JAX 0.10.2) makes zeros that depend on nothing, for all layers, and keeps them
    # until they are used. `fusion.zero_after` has the figures and the test.
    rows = varying_as(values, jnp.full(shape, zero_after(source).astype(dtype)))
    for begin in range(0, length, width):
        rows, _ = lax.scan(add, rows, (values, taken.moved(begin), put.moved(begin)))
    return rows


def inner_rows(length: int, inputs: jax.Array, outputs: jax.Array, in_inputs: Places, in_outputs: Places) -> jax.Array:
    """Return for each weight the inner product of ``length`` numbers at its places in both kinds of rows."""
    is_short = length <= SHORT_ROW
    width = LANES if is_short else PIECE

    def multiply(places: tuple[Places, Places]) -> jax.Array:
        row, across = (
            lax.dynamic_slice(rows, place, (1, length)) for rows, place in zip((inputs, outputs), places, strict=True)
        )
        pieces = (row * across).reshape(length // width, width)
        # XLA's CPU backend (JAX 0.10.2) computes a product with ones faster than a sum: `benchmarks/rows.py` times
        # both. It computes a sum of slices in the same pass as the products.
        summed = functools.reduce(jnp.add, pieces) if is_short else pieces
        return jnp.sum(jnp.matmul(summed, jnp.ones(width, pieces.dtype), precision=lax.Precision.HIGHEST))

    nnz = len(in_inputs.row)
    if not is_short:
        return lax.map(multiply, (in_inputs, in_outputs))
    # The sums of a block are no more numbers than the rows of outputs. XLA does not store the products. There are at
    # least two blocks: outside of a loop XLA fuses this with the code that lays out the rows, which takes four times as
    # long.
    blocks = max(2, -(-nnz * LANES // outputs.size))
    return lax.map(multiply, (in_inputs, in_outputs), batch_size=max(1, nnz // blocks))
