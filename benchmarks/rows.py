"""Time several ways of computing the rows of each weight, side by side: ``python benchmarks/rows.py``.

For each weight, ``dctps_jax.ops.rows`` adds a row to another one, or takes an inner product of two rows. The script
prints nanoseconds a weight, the minimum of all turns:

- ``add_rows``, and a loop that adds whole rows of any length;
- ``inner_rows``, and two loops over single weights: one sums products by a product with ones, one by ``jnp.sum``.

Needs the package installed, or ``PYTHONPATH=.``.
"""

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dctps_jax import compiler_options
from dctps_jax.ops import rows
from dctps_jax.ops.rows import PIECE, Places, add_rows, inner_rows


def add_whole_rows(*arguments: Any) -> jax.Array:
    """Return what ``add_rows`` returns."""
    with mock.patch.object(rows, "SHORT_ROW", 0):
        return add_rows(*arguments)


def one_by_one(
    add_up: Callable[[jax.Array], jax.Array],
    length: int,
    inputs: jax.Array,
    outputs: jax.Array,
    in_inputs: Places,
    in_outputs: Places,
) -> jax.Array:
    """Return what ``inner_rows`` returns."""

    def multiply(_: None, places: tuple[Places, Places]) -> tuple[None, jax.Array]:
        row, across = (
            lax.dynamic_slice(rows, place, (1, length)) for rows, place in zip((inputs, outputs), places, strict=True)
        )
        return None, add_up((row * across).reshape(length // PIECE, PIECE))

    return lax.scan(multiply, None, (in_inputs, in_outputs))[1]


def by_ones(products: jax.Array) -> jax.Array:
    return jnp.sum(products @ jnp.ones(PIECE, products.dtype))


# Column → what it times.
ADDING: dict[str, Callable[..., jax.Array]] = {"`add_rows`": add_rows, "whole rows": add_whole_rows}
INNER: dict[str, Callable[..., jax.Array]] = {
    "`inner_rows`": inner_rows,
    "one by one, ones": functools.partial(one_by_one, by_ones),
    "one by one, sum": functools.partial(one_by_one, jnp.sum),
}


def seconds_of(program: Callable[..., jax.Array], arguments: tuple[Any, ...]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(program(*arguments))
    return time.perf_counter() - start


def compiled(function: Callable[..., jax.Array], arguments: tuple[Any, ...]) -> Callable[..., jax.Array]:
    program = jax.jit(function).lower(*arguments).compile(compiler_options())
    jax.block_until_ready(program(*arguments))
    return program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--weights", type=int, default=2000, help="pairs of rows")
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 512, 4096, 16384])
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.default_backend()}\n| length | {' | '.join((*ADDING, *INNER))} |")
    print(f"|{' ---: |' * (1 + len(ADDING) + len(INNER))}")
    rng = np.random.default_rng(0)
    for length in options.lengths:
        inputs, outputs = (jnp.asarray(rng.normal(size=(options.channels, length)), jnp.float32) for _ in range(2))
        values = jnp.asarray(rng.normal(size=options.weights), jnp.float32)
        row = jnp.asarray(rng.integers(0, options.channels, options.weights), jnp.int32)
        places = Places(row, jnp.zeros_like(row))
        calls = []
        for add in ADDING.values():
            arguments = (values, inputs, places, places)
            calls.append((compiled(functools.partial(add, outputs.shape, length), arguments), arguments))
        for inner in INNER.values():
            arguments = (inputs, outputs, places, places)
            calls.append((compiled(functools.partial(inner, length), arguments), arguments))
        turns = [[seconds_of(*call) for call in calls] for _ in range(options.repeats)]
        times = (1e9 * min(column) / options.weights for column in zip(*turns, strict=True))
        print(f"| {length:,} | {' | '.join(f'{time:,.0f}' for time in times)} |")


if __name__ == "__main__":
    main()
