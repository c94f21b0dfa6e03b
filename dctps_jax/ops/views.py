"""Views of images for convolutions: padded, and shifted to each position of a kernel."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax


def pad_spatial(inputs: jax.Array, pads: Sequence[tuple[int, int]]) -> jax.Array:
    """Pad the spatial dimensions of ``inputs [batch, *spatial, channels]`` by zeros."""
    if not any(low or high for low, high in pads):
        return inputs
    # lax.pad, unlike jnp.pad, crops where a padding is negative, as a convolution does.
    return lax.pad(inputs, jnp.zeros((), inputs.dtype), [(0, 0, 0), *((*pair, 0) for pair in pads), (0, 0, 0)])


def shifted_views(
    inputs: jax.Array, size: Sequence[int], outputs: Sequence[int], strides: Sequence[int]
) -> list[jax.Array]:
    """Return, for each position of a kernel in C order, the inputs under it: arrays ``[batch, *outputs, channels]``."""
    views = []
    for shifts in itertools.product(*map(range, size)):
        view = [
            slice(shift, max(shift, shift + (count - 1) * stride + 1), stride)
            for shift, count, stride in zip(shifts, outputs, strides, strict=True)
        ]
        views.append(inputs[:, *view])
    return views
