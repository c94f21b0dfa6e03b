"""How kernels start: untruncated normals with the gains of PyTorch's functions of these names."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

# Normal numbers are drawn in arrays whose lengths are this times a power of 4.
SHORTEST_DRAW = 1 << 16


def normal(gain: float, mode: str) -> nnx.Initializer:
    """Return an initialiser of normal numbers with variance ``gain / fan``, by "fan_in", "fan_out" or "fan_avg".

    The numbers are those of ``nnx.initializers.variance_scaling(gain, mode, "normal")``: JAX 0.10 computes the same
    bits. JAX 0.12 joins other operations, and the numbers differ by up to two units in the last place. That function
    compiles a random-number program for each shape, which takes longer than all other work to build a dense network.
    Here a number depends on the key and its position only, so that one program serves all shorter kernels.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        fan_in = math.prod(shape[:-1])
        fan_out = fan_in // shape[-2] * shape[-1]
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
        length = SHORTEST_DRAW
        while length < math.prod(shape):
            length *= 4
        return _scaled(jax.random.normal(key, (length,), dtype), jnp.sqrt(jnp.array(gain / fan, dtype)), shape)

    return init


@partial(jax.jit, static_argnums=2)
def _scaled(numbers: jax.Array, deviation: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return numbers[: math.prod(shape)].reshape(shape) * deviation


INITIALIZERS: dict[str, nnx.Initializer] = {
    "kaiming_normal": normal(2.0, "fan_in"),
    "kaiming_normal_fan_out": normal(2.0, "fan_out"),
    "xavier_normal": normal(1.0, "fan_avg"),
    "orthogonal": nnx.initializers.orthogonal(),
    "zeros": nnx.initializers.zeros,
}
