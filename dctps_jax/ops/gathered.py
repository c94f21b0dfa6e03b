"""The sparse part S for all weights at once, on channels gathered from the activations; for few weights.

A weight i sees its input channel, shifted to its position of the kernel: one column ``X[:, i]`` over the output
positions. Then ``(S∗x)[:, m] = Σ_{i: m_i = m} v_i X[:, i]`` and ``∂v_i = Σ_n X[n, i] ∂Y[n, m_i]``. The columns of all
weights are made at once, so memory and time grow with nnz times the positions.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dctps_jax.ops.costs import Costs
from dctps_jax.ops.fusion import materialized, zero_after
from dctps_jax.ops.geometry import Geometry
from dctps_jax.ops.sparse_part import Weights, weights_at
from dctps_jax.ops.views import pad_spatial, shifted_views
from dctps_jax.ops.work import Work
from dctps_jax.precision import in_float32

# A processor computes this many numbers at once. Lists of fewer weights than MAX_FILLED are filled up to whole vectors.
VECTOR, MAX_FILLED = 8, 64
# More gathered numbers than this do not fit into the caches.
LARGE_PAIRS = 4e6
# A layer is lean if it gathers at most this many times the numbers that it gathers from. In addition it may gather as
# many numbers as its kernel has, because it computes no gradient of the kernel. So the step needs no more memory than a
# dense one.
MAX_GATHERED = 3


class Gathered:
    """A :class:`~dctps_jax.ops.sparse_part.SparsePart` on gathered channels."""

    def __init__(self, work: Work, support: jax.Array):
        self.geometry, self.nnz = work.geometry, len(support)
        # Lists are filled up with weights at position 0 whose values count as zero.
        self.support = jnp.pad(support, (0, -self.nnz % (VECTOR if self.nnz < MAX_FILLED else 1)))

    def kept(self, inputs: jax.Array) -> None:
        return None

    def convolve(self, inputs: jax.Array, values: jax.Array, kept: jax.Array | None = None) -> jax.Array:
        weights, values = weights_at(self.support, self.geometry), values.astype(inputs.dtype)
        seen = seen_by(weights, inputs, self.geometry)
        return _scattered_product(seen, values, weights.target, self.geometry.kernel_shape[-1], self.geometry.precision)

    def gradient_of_values(self, inputs: jax.Array, gradient: jax.Array) -> jax.Array:
        weights = self._weights_after(gradient)
        return _products(seen_by(weights, inputs, self.geometry), gradient, weights.target)[: self.nnz]

    def gradients(
        self, inputs: jax.Array, gradient: jax.Array, values: jax.Array, kept: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        weights = self._weights_after(gradient)
        back = self.geometry._replace(pads=self.geometry.transposed_pads())
        reversed_weights = Weights(self.geometry.num_positions - 1 - weights.tap, weights.target, weights.source)
        seen = seen_by(reversed_weights, gradient, back)
        values = values.astype(gradient.dtype)
        grad_inputs = _scattered_product(seen, values, weights.source, inputs.shape[-1], self.geometry.precision)
        return grad_inputs, _products(seen, inputs, weights.source)[: self.nnz]

    def _weights_after(self, gradient: jax.Array) -> Weights:
        # The positions depend on the gradient, so that the channels are gathered in the backward pass. If the positions
        # are known before, XLA (JAX 0.10.2) gathers the channels in the forward pass and keeps them until here.
        # `fusion.zero_after` has the figures and the test.
        return weights_at(self.support + zero_after(gradient), self.geometry)

    @staticmethod
    def is_lean(work: Work) -> bool:
        width = work.geometry.size[-1] if work.geometry.size else 1
        gathered_from = work.output_positions * (width * work.in_channels + work.out_channels)
        return work.output_positions * work.nnz <= MAX_GATHERED * gathered_from + work.num_weights

    @staticmethod
    def product_cost(work: Work, costs: Costs) -> float:
        pairs = work.output_positions * work.nnz
        return pairs * (_cost_of_pair(work, costs) + (work.in_channels + work.out_channels) * costs.product)

    @staticmethod
    def gradient_cost(work: Work, costs: Costs) -> float:
        geometry, unfolded = work.geometry, 0
        if geometry.num_positions > 1 and unfolds(geometry, work.nnz, work.in_channels):
            unfolded = work.output_positions * geometry.largest_stride * geometry.size[-1] * work.in_channels
        return unfolded * costs.unfold + work.output_positions * work.nnz * _cost_of_pair(work, costs)


def _cost_of_pair(work: Work, costs: Costs) -> float:
    """Return the nanoseconds of a trained weight at one position."""
    pair = costs.pointwise_pair if work.geometry.num_positions == 1 else costs.pair
    return pair + (costs.large_pair if work.output_positions * work.nnz > LARGE_PAIRS else 0)


def _products(seen: jax.Array, across: jax.Array, channels: jax.Array) -> jax.Array:
    """Return ``Σ_n seen[n, i] · across[n, channels[i]]`` over all positions n: the gradient of every value."""
    # In float32 at least: in half precision, products of small numbers would vanish and products of large ones
    # overflow.
    products = in_float32(seen) * in_float32(_take_channels(across, channels))
    products = products.reshape(math.prod(seen.shape[:-1]), len(channels))
    # A product with ones instead of a sum: the terms of a sum are computed value by value, the terms of a product in
    # the order of memory. On no platform are its factors rounded.
    return jnp.matmul(jnp.ones(len(products), products.dtype), products, precision=lax.Precision.HIGHEST)


def seen_by(weights: Weights, inputs: jax.Array, geometry: Geometry) -> jax.Array:
    """Return ``X [batch, *output positions, nnz]``: what each weight sees of ``inputs [batch, *spatial, channels]``."""
    outputs = geometry.output_spatial(inputs.shape[1:-1])
    inputs = pad_spatial(inputs, geometry.pads)
    size, strides = geometry.size, geometry.strides
    position, channel = weights.tap, weights.source
    if unfolds(geometry, len(channel), inputs.shape[-1]):
        *others, width = size
        views = shifted_views(
            inputs,
            (*(1 for _ in others), width),
            (*inputs.shape[1:-2], outputs[-1]),
            (*(1 for _ in others), strides[-1]),
        )
        channel, position = position % width * inputs.shape[-1] + channel, position // width
        inputs, size, strides = jnp.concatenate(views, axis=-1), (*others, 1), (*strides[:-1], 1)
    # Without `materialized`, XLA (JAX 0.10.2) computes the inputs again for each number that is gathered from them.
    # `fusion.py` has the figures and the test.
    channels = _take_channels(materialized(inputs), channel)
    if geometry.num_positions > 1:
        channels = materialized(channels)
    first, *shifted = shifted_views(channels, size, outputs, strides)
    for number, view in enumerate(shifted, start=1):
        first = jnp.where(position == number, view, first)
    return first


def unfolds(geometry: Geometry, nnz: int, channels: int) -> bool:
    """Return whether channels are shifted along the last spatial dimension before they are gathered."""
    return bool(geometry.size) and (geometry.largest_stride > 1 or nnz > geometry.size[-1] * channels)


def _take_channels(x: jax.Array, channels: jax.Array) -> jax.Array:
    """Return ``x[..., channels]``."""
    rows = x.reshape(-1, x.shape[-1])
    # One index for each number, not for each channel. The outputs are then written in their order, while the row of the
    # inputs is in the cache.
    indices = jnp.broadcast_to(channels, (len(rows), len(channels)))
    taken = jnp.take_along_axis(rows, indices, axis=1, mode="promise_in_bounds")
    return taken.reshape(*x.shape[:-1], len(channels))


def _scattered_product(
    seen: jax.Array, values: jax.Array, channels: jax.Array, num_channels: int, precision: Any
) -> jax.Array:
    """Return ``y[n, m] = Σ_{i: channels[i] = m} values[i] · seen[n, i]``.

    It is computed as a product with a matrix that has one value in each row.
    """
    values = jnp.pad(values, (0, len(channels) - len(values)))
    matrix = jnp.zeros((len(values), num_channels), values.dtype)
    matrix = matrix.at[jnp.arange(len(values)), channels].set(values, unique_indices=True, mode="promise_in_bounds")
    return jnp.matmul(seen, matrix, precision=precision)
