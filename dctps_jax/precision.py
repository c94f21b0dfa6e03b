"""Convert narrow floating-point numbers to float32 before computing with them."""

import jax
import jax.numpy as jnp


def in_float32(x: jax.Array) -> jax.Array:
    """Return ``x`` in float32, or unchanged if its dtype is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
