"""The sparse part S of a convolution as the list of its trained weights: its products and the gradient of its values.

Nothing here has the size of a kernel. Each weight is a position p of the kernel, an input channel and an output channel; what
weight i sees is its input channel, shifted to p: one column ``X[:, i]`` over the output positions. With these
``(S∗x)[:, m] = Σ_{i: m_i = m} v_i X[:, i]`` and ``∂v_i = Σ_n X[n, i] ∂Y[n, m_i]``, at a cost in proportion to nnz.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dctps_jax.convolution import pad_spatial, shifted_views
from dctps_jax.fusion import materialized
from dctps_jax.geometry import Geometry

# Numbers that a processor computes at once, and up to where filling up to them is less than what it saves.
VECTOR, MAX_FILLED = 8, 64


class Weights(NamedTuple):
    """Where the trained weights are: position in the kernel (C order), input and output channel; int32 ``[nnz]`` each."""

    position: jax.Array
    source: jax.Array
    target: jax.Array


def weights_at(support: jax.Array, geometry: Geometry) -> Weights:
    """Return where the weights at the positions ``support`` of the flattened kernel are.

    Short lists are filled up to whole vectors of the processor, by weights at position 0 whose values count as zero.
    """
    support = jnp.pad(support, (0, -len(support) % (VECTOR if len(support) < MAX_FILLED else 1)))
    *_, in_features, out_features = geometry.kernel_shape
    rows, target = support // out_features, support % out_features
    group = target // (out_features // geometry.groups)
    return Weights(rows // in_features, rows % in_features + group * in_features, target)


def convolve_sparse(inputs: jax.Array, values: jax.Array, weights: Weights, geometry: Geometry) -> jax.Array:
    """Return ``S∗inputs``."""
    seen = seen_by(weights, inputs, geometry)
    return _scattered_product(seen, values, weights.target, geometry.kernel_shape[-1], geometry.precision)


def transpose_sparse(
    outputs: jax.Array, values: jax.Array, weights: Weights, geometry: Geometry
) -> tuple[jax.Array, jax.Array]:
    """Return ``Sᵀ∗outputs`` for strides of 1, and what each weight saw of ``outputs`` on the way back."""
    back = geometry._replace(pads=geometry.transposed_pads())
    reversed_weights = Weights(geometry.num_positions - 1 - weights.position, weights.target, weights.source)
    seen = seen_by(reversed_weights, outputs, back)
    in_features = geometry.kernel_shape[-2] * geometry.groups
    return _scattered_product(seen, values, weights.source, in_features, geometry.precision), seen


def gradient_of_values(seen: jax.Array, across: jax.Array, channels: jax.Array) -> jax.Array:
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


def add_at(array: jax.Array, positions: jax.Array, values: jax.Array) -> jax.Array:
    """Return ``array`` with ``values`` added at the ascending ``positions`` of the flattened array."""
    # By row and column: what makes a flat array would have to divide for each of its numbers.
    rows = array.reshape(-1, array.shape[-1])
    at = rows.at[positions // array.shape[-1], positions % array.shape[-1]]
    # Not declared unique: in a loop over blocks lists are filled up by zeros at a position that is there.
    return at.add(values, indices_are_sorted=True, mode="promise_in_bounds").reshape(array.shape)
