"""What every network is built from: its layer types with the settings already filled in, and how weights start."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from dctps_jax.layers import DCTpSConv, DCTpSLinear

# Untruncated normals with the gains of PyTorch's functions of these names.
INITIALIZERS: dict[str, nnx.Initializer] = {
    "kaiming_normal": nnx.initializers.variance_scaling(2.0, "fan_in", "normal"),
    "kaiming_normal_fan_out": nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
    "xavier_normal": nnx.initializers.variance_scaling(1.0, "fan_avg", "normal"),
    "orthogonal": nnx.initializers.orthogonal(),
    "zeros": nnx.initializers.zeros,
}


class Parts(NamedTuple):
    """Constructors of a network's layers: offset, dtypes and random numbers are filled in once, in ``make_parts``."""

    conv: Callable[..., DCTpSConv]
    linear: Callable[..., DCTpSLinear]
    norm: Callable[..., nnx.BatchNorm]
    scalar: Callable[[float], nnx.Param]


def make_parts(
    *,
    offset: str | None,
    alpha_trainable: bool,
    init: str,
    dtype: Any,
    param_dtype: Any,
    precision: Any,
    compact: bool,
    rngs: nnx.Rngs,
) -> Parts:
    """Return the layer constructors for one network: bias-free convolutions, linear layers, BatchNorm as PyTorch's.

    With ``compact`` no kernel is made: the layers wait for their supports.
    """
    shared = {
        "offset": offset,
        "alpha_trainable": alpha_trainable,
        "kernel_init": INITIALIZERS[init],
        "dtype": dtype,
        "param_dtype": param_dtype,
        "precision": precision,
        "support": "later" if compact else None,
        "rngs": rngs,
    }
    return Parts(
        conv=partial(DCTpSConv, use_bias=False, **shared),
        linear=partial(DCTpSLinear, **shared),
        norm=partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-5, dtype=dtype, param_dtype=param_dtype, rngs=rngs),
        # jnp.array makes a buffer of its own for each: donation refuses one that occurs twice.
        scalar=lambda value: nnx.Param(jnp.array(value, param_dtype)),
    )


def halve_by_average(x: jax.Array) -> jax.Array:
    """Average ``[batch, height, width, channels]`` over windows of 2×2."""
    return nnx.avg_pool(x, window_shape=(2, 2), strides=(2, 2))


def halve_by_maximum(x: jax.Array) -> jax.Array:
    """Take the maximum of ``[batch, height, width, channels]`` over windows of 2×2."""
    return nnx.max_pool(x, window_shape=(2, 2), strides=(2, 2))


def global_average_pool(x: jax.Array) -> jax.Array:
    """Average ``[batch, height, width, channels]`` over the positions."""
    return jnp.mean(x, axis=(1, 2))
