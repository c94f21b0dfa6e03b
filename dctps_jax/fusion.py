"""What the compiler is not to fuse: results that are to be computed once and stored."""

import jax


def materialized(x: jax.Array) -> jax.Array:
    """Return ``x``, computed once and stored.

    A compiler that fuses puts the making of an elementwise result into every operation that reads it, back to the last
    convolutions and again for each number that a gather picks. It can't do so across a write into the array.
    """
    return x.at[(0,) * x.ndim].add(0) if x.size else x
