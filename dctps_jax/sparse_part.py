"""Where the trained weights of a kernel are, and what is computed with them one after the other.

Nothing here has the size of a kernel. Each weight is a position p of the kernel, an input channel c and an output channel m; with
``x_p`` the inputs shifted to p, ``(S∗x)[m] = Σ_{i: m_i = m} v_i x_{p_i}[c_i]`` and ``∂v_i = ⟨x_{p_i}[c_i], ∂Y[m_i]⟩``.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dctps_jax.geometry import Geometry
from dctps_jax.rows import Layout, Places, add_rows, inner_rows


class Weights(NamedTuple):
    """Where the trained weights are: position in the kernel (C order), input and output channel; int32 ``[nnz]`` each."""

    position: jax.Array
    source: jax.Array
    target: jax.Array


def weights_at(support: jax.Array, geometry: Geometry) -> Weights:
    """Return where the weights at the positions ``support`` of the flattened kernel are."""
    *_, in_features, out_features = geometry.kernel_shape
    rows, target = support // out_features, support % out_features
    group = target // (out_features // geometry.groups)
    return Weights(rows // in_features, rows % in_features + group * in_features, target)


class InRows:
    """The weights at the positions ``support`` of the flattened kernel, for inputs of shape ``[batch, *spatial, channels]``.

    Activations are laid out in rows, one a channel (:mod:`dctps_jax.rows`): each weight then takes one multiply-add of two rows. Laying out
    takes time in proportion to the channels, the weights little: for many weights. Sums are computed in float32 at least.
    """

    def __init__(self, support: jax.Array, geometry: Geometry, inputs_shape: tuple[int, ...]):
        self.layout = Layout(geometry, inputs_shape)
        position, source, target = weights_at(support, geometry)
        phase, start, width = 0, jnp.zeros_like(source), geometry.num_positions
        for extent, stride, step in zip(geometry.size, geometry.strides, self.layout.steps, strict=True):
            width //= extent
            offset = position // width % extent
            phase, start = phase * stride + offset % stride, start + offset // stride * step
        self.in_inputs = Places(phase * inputs_shape[-1] + source, start)
        self.in_outputs = Places(target, jnp.zeros_like(target))
        phases, length = math.prod(geometry.strides), self.layout.length
        self.inputs_shape = (phases * inputs_shape[-1], self.layout.reach + length)
        self.outputs_shape = (geometry.kernel_shape[-1], length)

    def convolve(self, inputs: jax.Array, values: jax.Array) -> jax.Array:
        """Return ``S∗inputs``."""
        rows = self.layout.rows_of_inputs(_wide(inputs), after=inputs)
        sums = add_rows(self.outputs_shape, self.layout.length, _wide(values), rows, self.in_inputs, self.in_outputs)
        return self.layout.outputs_of_rows(sums).astype(inputs.dtype)

    def gradients(
        self, inputs: jax.Array, gradient: jax.Array, values: jax.Array | None = None
    ) -> tuple[jax.Array | None, jax.Array]:
        """Return the gradients of the inputs and of the values for that of the outputs; with ``values`` of None not the former."""
        across = self.layout.rows_of_outputs(_wide(gradient))
        # After the gradient is there: made before, in the forward pass, the rows would have to be kept.
        rows = self.layout.rows_of_inputs(_wide(inputs), after=gradient)
        to_values = inner_rows(self.layout.length, rows, across, self.in_inputs, self.in_outputs)
        if values is None:
            return None, to_values
        sums = add_rows(self.inputs_shape, self.layout.length, _wide(values), across, self.in_outputs, self.in_inputs)
        return self.layout.inputs_of_rows(sums).astype(inputs.dtype), to_values


def _wide(x: jax.Array) -> jax.Array:
    dtype: Any = jnp.promote_types(x.dtype, jnp.float32)
    return x.astype(dtype)


def add_at(array: jax.Array, positions: jax.Array, values: jax.Array) -> jax.Array:
    """Return ``array`` with ``values`` added at the ascending ``positions`` of the flattened array."""
    # By row and column: what makes a flat array would have to divide for each of its numbers.
    rows = array.reshape(-1, array.shape[-1])
    at = rows.at[positions // array.shape[-1], positions % array.shape[-1]]
    # Not declared unique: in a loop over blocks lists are filled up by zeros at a position that is there.
    return at.add(values, indices_are_sorted=True, mode="promise_in_bounds").reshape(array.shape)
