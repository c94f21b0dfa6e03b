"""The parts that every network is built from: its layer types with their settings filled in, sums and poolings."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dctps_jax.kernels import KernelLayer
from dctps_jax.layers import DCTpSConv, DCTpSLinear
from dctps_jax.models.blocks import Running
from dctps_jax.models.initializers import INITIALIZERS
from dctps_jax.models.normalization import BatchNorm
from dctps_jax.offsets import Offset, find_offset
from dctps_jax.ops.target import on_cpu

LayerType = TypeVar("LayerType", bound=KernelLayer)


class ResidualSum(nnx.Module):
    """Add a residual branch to its shortcut. It is a module so that a copy of the network can replace it."""

    def __call__(self, branch: jax.Array, shortcut: jax.Array) -> jax.Array:
        return branch + shortcut


class Parts(NamedTuple):
    """Constructors of a network's layers. ``make_parts`` fills in offset, dtypes and random numbers once.

    ``channels`` is the number of channels of the images; ``built`` lists the prunable layers that were built so far.
    """

    conv: Callable[..., DCTpSConv]
    linear: Callable[..., DCTpSLinear]
    norm: Callable[..., BatchNorm]
    scalar: Callable[[float], nnx.Param]
    channels: int
    offset: Offset | None
    running: Running
    built: list[KernelLayer]


def make_parts(
    *,
    running: Running,
    rngs: nnx.Rngs,
    channels: int = 3,
    offset: str | Offset | None = None,
    alpha_init: float = 1.0,
    alpha_trainable: bool = True,
    init: str = "zeros",
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    supports: Iterable[np.ndarray] | None = None,
) -> Parts:
    """Return the layer constructors for one network: bias-free convolutions, linear layers, BatchNorm as PyTorch's.

    ``supports`` are the positions of the trained weights of each layer, in the order in which the network builds its
    layers. None trains all weights.
    """
    found = find_offset(offset)
    shared = {
        "offset": found,
        "alpha_init": alpha_init,
        "alpha_trainable": alpha_trainable,
        "kernel_init": INITIALIZERS[init],
        "dtype": dtype,
        "param_dtype": param_dtype,
        "precision": precision,
        "rngs": rngs,
    }
    remaining = None if supports is None else iter(supports)
    built: list[KernelLayer] = []

    def build(layer_type: Callable[..., LayerType], *sizes: Any, **settings: Any) -> LayerType:
        support = None if remaining is None else next(remaining)
        layer = layer_type(*sizes, support=support, **(shared | settings))
        built.append(layer)
        return layer

    return Parts(
        conv=partial(build, DCTpSConv, use_bias=False),
        linear=partial(build, DCTpSLinear),
        norm=partial(BatchNorm, momentum=0.9, epsilon=1e-5, dtype=dtype, param_dtype=param_dtype, rngs=rngs),
        # jnp.array makes a buffer of its own for each: donation refuses a buffer that occurs twice.
        scalar=lambda value: nnx.Param(jnp.array(value, param_dtype)),
        channels=channels,
        offset=found,
        running=running,
        built=built,
    )


def halve_by_average(x: jax.Array) -> jax.Array:
    """Average ``[batch, height, width, channels]`` over windows of 2×2."""
    return nnx.avg_pool(x, window_shape=(2, 2), strides=(2, 2))


def halve_by_maximum(x: jax.Array) -> jax.Array:
    """Take the maximum of ``[batch, height, width, channels]`` over windows of 2×2; of equal entries, the first."""
    if on_cpu():  # the native gradient takes ten times as long there
        return _maximum_of_windows(x)
    return nnx.max_pool(x, window_shape=(2, 2), strides=(2, 2))


def halve_by_maximum_of_3x3(x: jax.Array) -> jax.Array:
    """Take the maximum of ``[batch, height, width, channels]`` over 3×3 positions around every second position."""
    padding: Any = ((1, 1), (1, 1))  # Flax's annotation names texts only
    return nnx.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding=padding)


def _windows(x: jax.Array) -> list[jax.Array]:
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    return [x[:, row:height:2, column:width:2] for row in (0, 1) for column in (0, 1)]


@jax.custom_vjp
def _maximum_of_windows(x: jax.Array) -> jax.Array:
    return _maximum_forward(x)[0]


def _maximum_forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    first, second, third, fourth = _windows(x)
    maximum = jnp.maximum(jnp.maximum(first, second), jnp.maximum(third, fourth))
    return maximum, (x, maximum)


def _maximum_backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array]:
    """Send each gradient to the first entry of its window that equals the maximum."""
    x, maximum = saved
    gradients, free = [], jnp.ones(maximum.shape, bool)
    for window in _windows(x):
        hit = free & (window == maximum)
        gradients.append(jnp.where(hit, gradient, 0))
        free &= ~hit
    batch, height, width, channels = maximum.shape
    together = jnp.stack(gradients).reshape(2, 2, batch, height, width, channels)
    together = together.transpose(2, 3, 0, 4, 1, 5).reshape(batch, 2 * height, 2 * width, channels)
    odd = [(0, 0), *((0, full - even) for full, even in zip(x.shape[1:3], together.shape[1:3], strict=True)), (0, 0)]
    return (jnp.pad(together, odd),)


_maximum_of_windows.defvjp(_maximum_forward, _maximum_backward)


def global_average_pool(x: jax.Array) -> jax.Array:
    """Average ``[batch, height, width, channels]`` over the positions."""
    return jnp.mean(x, axis=(1, 2))
