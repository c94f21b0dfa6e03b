"""The sparse part S, one weight after another, on activations that are laid out in rows; for many weights."""

import math

import jax
import jax.numpy as jnp

from dctps_jax.ops.costs import Costs
from dctps_jax.ops.rows import SHORT_ROW, Layout, Places, add_rows, inner_rows
from dctps_jax.ops.sparse_part import weights_at
from dctps_jax.ops.work import Work
from dctps_jax.precision import in_float32


class InRows:
    """A :class:`~dctps_jax.ops.sparse_part.SparsePart` in rows, one for each channel (:mod:`dctps_jax.ops.rows`).

    Each weight takes one multiply-add of two rows. The time to lay out rows grows with the number of channels; after
    that each weight takes little time. Sums are computed in float32 at least.
    """

    def __init__(self, work: Work, support: jax.Array):
        geometry, in_channels = work.geometry, work.inputs[-1]
        self.layout = Layout(geometry, work.inputs)
        tap, source, target = weights_at(support, geometry)
        # A weight at position (i, j, …) of the kernel meets the inputs that are i, j, … further. With a stride s every
        # s-th input of an axis is in a row of its own: the weight meets row i mod s, from its number i div s on.
        phase, start, later_positions = 0, jnp.zeros_like(source), geometry.num_positions
        for extent, stride, step in zip(geometry.size, geometry.strides, self.layout.steps, strict=True):
            later_positions //= extent
            shift = tap // later_positions % extent
            phase, start = phase * stride + shift % stride, start + shift // stride * step
        self.in_inputs = Places(phase * in_channels + source, start)
        self.in_outputs = Places(target, jnp.zeros_like(target))
        phases, length = math.prod(geometry.strides), self.layout.length
        self.inputs_shape = (phases * in_channels, self.layout.reach + length)
        self.outputs_shape = (geometry.kernel_shape[-1], length)

    def kept(self, inputs: jax.Array) -> jax.Array | None:
        # Short rows are few numbers, and making them again takes a good part of a step, so they are kept. Long rows are
        # as large as the inputs, which are kept anyway, so the backward pass makes them again.
        return self._rows_of_inputs(inputs, after=inputs) if self.layout.is_short else None

    def convolve(self, inputs: jax.Array, values: jax.Array, kept: jax.Array | None = None) -> jax.Array:
        rows = self._rows_of_inputs(inputs, after=inputs) if kept is None else kept
        sums = add_rows(
            self.outputs_shape, self.layout.length, in_float32(values), rows, self.in_inputs, self.in_outputs
        )
        return self.layout.outputs_of_rows(sums).astype(inputs.dtype)

    def gradient_of_values(self, inputs: jax.Array, gradient: jax.Array) -> jax.Array:
        across = self.layout.rows_of_outputs(in_float32(gradient))
        return self._inner_products(self._rows_of_inputs(inputs, after=gradient), across)

    def gradients(
        self, inputs: jax.Array, gradient: jax.Array, values: jax.Array, kept: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        across = self.layout.rows_of_outputs(in_float32(gradient))
        rows = self._rows_of_inputs(inputs, after=gradient) if kept is None else kept
        grad_values = self._inner_products(rows, across)
        sums = add_rows(
            self.inputs_shape, self.layout.length, in_float32(values), across, self.in_outputs, self.in_inputs
        )
        return self.layout.inputs_of_rows(sums).astype(inputs.dtype), grad_values

    def _rows_of_inputs(self, inputs: jax.Array, after: jax.Array) -> jax.Array:
        return self.layout.rows_of_inputs(in_float32(inputs), after)

    def _inner_products(self, rows: jax.Array, across: jax.Array) -> jax.Array:
        return inner_rows(self.layout.length, rows, across, self.in_inputs, self.in_outputs)

    @staticmethod
    def is_lean(work: Work) -> bool:
        """Return True: the rows do not grow with the number of weights."""
        return True

    @staticmethod
    def product_cost(work: Work, costs: Costs) -> float:
        positions, inputs, outputs = _sizes(work)
        return costs.row * (2 * inputs + outputs) + 2 * work.nnz * (
            positions * costs.row_pair + _loop(positions, costs)
        )

    @staticmethod
    def gradient_cost(work: Work, costs: Costs) -> float:
        positions, inputs, outputs = _sizes(work)
        return costs.row * (inputs + outputs) + work.nnz * (positions * costs.inner + _loop(positions, costs))


def _sizes(work: Work) -> tuple[int, int, int]:
    """Return the length of a row, and how many numbers the rows of inputs and of outputs hold."""
    positions = Layout(work.geometry, work.inputs).positions
    return positions, positions * math.prod(work.geometry.strides) * work.in_channels, positions * work.out_channels


def _loop(positions: int, costs: Costs) -> float:
    """Return the nanoseconds that each weight takes in addition to the work on its numbers."""
    return costs.loop if positions > SHORT_ROW else 0
