"""How a network runs its blocks: one by one, or equal ones as a loop; with their activations kept or recomputed."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from dctps_jax.ops.convolution import in_loop

# Each step copies the arrays of the looped blocks into stacked arrays. For blocks of at most this many bytes the copy
# costs almost nothing.
MAX_LOOPED_BYTES = 2**20


class Running(NamedTuple):
    """``min_loop`` equal blocks in a row become a loop, compiled once (0: never); ``remat`` saves memory.

    With ``remat`` only the inputs of a block are kept. Its activations are computed again for the gradient
    (``jax.checkpoint``).
    """

    min_loop: int = 64
    remat: bool = False


def run_blocks(blocks: Sequence[nnx.Module], x: jax.Array, running: Running) -> jax.Array:
    """Apply the blocks one after another and return the last one's outputs."""
    for _, group in itertools.groupby(blocks, key=nnx.graphdef):
        row = list(group)
        if 0 < running.min_loop <= len(row) and _is_small(row[0]):
            x = _loop(row, x, running.remat)
        else:
            for block in row:
                x = run_block(block, x, running)
    return x


def run_block(block: Any, x: jax.Array, running: Running) -> jax.Array:
    """Apply one block."""
    if not running.remat:
        return block(x)
    x, batch_stats = jax.checkpoint(_pure(nnx.graphdef(block)))(x, _arrays(block))
    nnx.update(block, nnx.restore_int_paths(batch_stats))
    return x


def _loop(blocks: list[Any], x: jax.Array, remat: bool) -> jax.Array:
    graph = nnx.graphdef(blocks[0])
    stacked = jax.tree.map(_stack, *map(_arrays, blocks))
    body = jax.checkpoint(_pure(graph)) if remat else _pure(graph)
    token = in_loop.set(True)
    try:
        x, batch_stats = jax.lax.scan(body, x, stacked)
    finally:
        in_loop.reset(token)
    for number, block in enumerate(blocks):
        nnx.update(block, nnx.restore_int_paths(jax.tree.map(lambda stat, number=number: stat[number], batch_stats)))
    return x


def _arrays(block: nnx.Module) -> tuple[Any, Any]:
    """Return the batch statistics and the other arrays of a block."""
    _, batch_stats, others = nnx.split(block, nnx.BatchStat, ...)
    return nnx.to_pure_dict(batch_stats), nnx.to_pure_dict(others)


def _pure(graph: nnx.GraphDef) -> Any:
    """Return ``(x, (batch_stats, other arrays)) → (outputs, new batch_stats)`` of a block."""

    def apply(x: jax.Array, arrays: tuple[Any, Any]) -> tuple[jax.Array, Any]:
        block = nnx.merge(graph, *arrays)
        x = block(x)
        return x, nnx.to_pure_dict(nnx.state(block, nnx.BatchStat))

    return apply


def _stack(*arrays: jax.Array) -> jax.Array:
    """Stack the same array of several blocks.

    Compact layers may differ in their number of weights. Shorter lists of positions are filled up with their last
    position. The values there must be 0.
    """
    longest = max(array.shape[:1] for array in arrays)
    if all(array.shape[:1] == longest for array in arrays):
        return jnp.stack(arrays)
    filled = []
    for array in arrays:
        missing = longest[0] - len(array)
        last = array[-1:] if jnp.issubdtype(array.dtype, jnp.integer) and len(array) else jnp.zeros(1, array.dtype)
        filled.append(jnp.concatenate([array, jnp.broadcast_to(last, (missing,))]))
    return jnp.stack(filled)


def _is_small(block: nnx.Module) -> bool:
    return sum(array.nbytes for array in jax.tree.leaves(nnx.state(block))) <= MAX_LOOPED_BYTES
