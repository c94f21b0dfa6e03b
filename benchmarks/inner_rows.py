"""Time inner products of long rows side by side: ``python benchmarks/inner_rows.py``.

`dctps_jax.ops.rows.inner_rows` adds up the products of a row as a matrix product with ones. The same loop with
``jnp.sum`` is timed beside it, in turns. Printed are microseconds a pair of rows, the minimum of all turns. Needs the
package installed, or ``PYTHONPATH=.``.
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dctps_jax.ops.rows import Places, inner_rows


def inner_rows_by_sum(
    length: int, inputs: jax.Array, outputs: jax.Array, in_inputs: Places, in_outputs: Places
) -> jax.Array:
    """Return what ``inner_rows`` returns."""

    def multiply(_: None, places: tuple[Places, Places]) -> tuple[None, jax.Array]:
        row, across = (
            lax.dynamic_slice(rows, place, (1, length)) for rows, place in zip((inputs, outputs), places, strict=True)
        )
        return None, jnp.sum(row * across)

    return lax.scan(multiply, None, (in_inputs, in_outputs))[1]


def seconds_of(function: Callable[[], jax.Array]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--weights", type=int, default=1000, help="pairs of rows")
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 65536])
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.default_backend()}\n| length | ones, µs | sum, µs |\n| ---: | ---: | ---: |")
    rng = np.random.default_rng(0)
    for length in arguments.lengths:
        inputs, outputs = (jnp.asarray(rng.normal(size=(arguments.channels, length)), jnp.float32) for _ in range(2))
        row = jnp.asarray(rng.integers(0, arguments.channels, arguments.weights), jnp.int32)
        places = Places(row, jnp.zeros_like(row))
        calls = []
        for products in (inner_rows, inner_rows_by_sum):
            compiled = jax.jit(products, static_argnums=0).lower(length, inputs, outputs, places, places).compile()
            calls.append(lambda compiled=compiled: compiled(inputs, outputs, places, places))  # noqa: B023
        turns = [[seconds_of(call) for call in calls] for _ in range(arguments.repeats)]
        ones, total = (1e6 * min(column) / arguments.weights for column in zip(*turns, strict=True))
        print(f"| {length:,} | {ones:.2f} | {total:.2f} |")


if __name__ == "__main__":
    main()
