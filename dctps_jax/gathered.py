"""The sparse part S of a convolution weight by weight, out of gathered channels: for few weights.

What weight i sees is its input channel, shifted to its position of the kernel: one column ``X[:, i]`` over the output positions. With these
``(S∗x)[:, m] = Σ_{i: m_i = m} v_i X[:, i]`` and ``∂v_i = Σ_n X[n, i] ∂Y[n, m_i]``. The columns of all weights are made at once: memory and time grow
with nnz times the positions. For more weights see :mod:`dctps_jax.rows`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from dctps_jax.convolution import pad_spatial, shifted_views
from dctps_jax.fusion import materialized, zero_after
from dctps_jax.geometry import Geometry
from dctps_jax.sparse_part import Weights, weights_at

# Numbers that a processor computes at once, and up to where filling up to them is less than what it saves.
VECTOR, MAX_FILLED = 8, 64


class Gathered:
    """The weights at the positions ``support`` of the flattened kernel."""

    def __init__(self, support: jax.Array, geometry: Geometry):
        self.geometry, self.nnz = geometry, len(support)
        # Short lists are filled up to whole vectors, by weights at position 0 whose values count as zero.
        self.support = jnp.pad(support, (0, -self.nnz % (VECTOR if self.nnz < MAX_FILLED else 1)))

    def convolve(self, inputs: jax.Array, values: jax.Array) -> jax.Array:
        """Return ``S∗inputs``."""
        weights, values = weights_at(self.support, self.geometry), values.astype(inputs.dtype)
        seen = seen_by(weights, inputs, self.geometry)
        return _scattered_product(seen, values, weights.target, self.geometry.kernel_shape[-1], self.geometry.precision)

    def gradients(
        self, inputs: jax.Array, gradient: jax.Array, values: jax.Array | None = None
    ) -> tuple[jax.Array | None, jax.Array]:
        """Return the gradients of the inputs and of the values for that of the outputs; with ``values`` of None not the former.

        The gradient of the inputs, ``Sᵀ∗gradient``, needs strides of 1.
        """
        # Gathered now: with positions known before, the compiler does it in the forward pass, and keeps it.
        weights = weights_at(self.support + zero_after(gradient), self.geometry)
        if values is None:
            seen = seen_by(weights, inputs, self.geometry)
            return None, _products(seen, gradient, weights.target)[: self.nnz]
        back = self.geometry._replace(pads=self.geometry.transposed_pads())
        reversed_weights = Weights(self.geometry.num_positions - 1 - weights.position, weights.target, weights.source)
        seen = seen_by(reversed_weights, gradient, back)
        to_inputs = _scattered_product(
            seen, values.astype(gradient.dtype), weights.source, inputs.shape[-1], self.geometry.precision
        )
        return to_inputs, _products(seen, inputs, weights.source)[: self.nnz]


def _products(seen: jax.Array, across: jax.Array, channels: jax.Array) -> jax.Array:
    """Return ``Σ_n seen[n, i] · across[n, channels[i]]`` over all positions: the gradient of every value."""
    products = (seen * _take_channels(across, channels)).reshape(math.prod(seen.shape[:-1]), len(channels))
    # A product with ones, for which the terms are computed in the order of their memory, not value by value.
    return jnp.ones(len(products), products.dtype) @ products


def seen_by(weights: Weights, inputs: jax.Array, geometry: Geometry) -> jax.Array:
    """Return ``X [batch, *output positions, nnz]``, what each weight sees of ``inputs [batch, *spatial, channels]``."""
    outputs = geometry.output_spatial(inputs.shape[1:-1])
    inputs = pad_spatial(inputs, geometry.pads)
    size, strides = geometry.size, geometry.strides
    position, channel = weights.position, weights.source
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
    channels = _take_channels(materialized(inputs), channel)
    if geometry.num_positions > 1:
        channels = materialized(channels)
    first, *shifted = shifted_views(channels, size, outputs, strides)
    for number, view in enumerate(shifted, start=1):
        first = jnp.where(position == number, view, first)
    return first


def unfolds(geometry: Geometry, nnz: int, channels: int) -> bool:
    """Return whether channels are shifted along the last dimension before they are gathered."""
    return bool(geometry.size) and (max(geometry.strides) > 1 or nnz > geometry.size[-1] * channels)


def _take_channels(x: jax.Array, channels: jax.Array) -> jax.Array:
    """Return ``x[..., channels]``."""
    rows = x.reshape(-1, x.shape[-1])
    # One index a number, not a channel: the outputs are then written in their order, with the inputs' row in the cache.
    indices = jnp.broadcast_to(channels, (len(rows), len(channels)))
    taken = jnp.take_along_axis(rows, indices, axis=1, mode="promise_in_bounds")
    return taken.reshape(*x.shape[:-1], len(channels))


def _scattered_product(
    seen: jax.Array, values: jax.Array, channels: jax.Array, num_channels: int, precision: Any
) -> jax.Array:
    """Return ``y[n, m] = Σ_{i: channels[i] = m} values[i] · seen[n, i]``, as a product with a matrix of one value a row."""
    values = jnp.pad(values, (0, len(channels) - len(values)))
    matrix = jnp.zeros((len(values), num_channels), values.dtype)
    matrix = matrix.at[jnp.arange(len(values)), channels].set(values, unique_indices=True, mode="promise_in_bounds")
    return jnp.matmul(seen, matrix, precision=precision)
