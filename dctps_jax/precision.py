"""Numbers that are computed in float32 where what is given is narrower."""

import jax
import jax.numpy as jnp


def in_float32(x: jax.Array) -> jax.Array:
    """Return ``x`` in float32, or in its dtype where that is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
