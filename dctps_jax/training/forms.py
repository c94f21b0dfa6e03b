"""The two forms of a training state: masked (dense arrays beside masks) and compact (values beside their positions).

Both have the same content. Arrays with a number for each weight, such as the optimiser's moments, are kept in the
compact form for the trained weights only. All other arrays are the same in both. A state of NumPy arrays stays on the
host.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dctps_jax.ops.sparse_part import add_at
from dctps_jax.pruning.dynamic import map_moments
from dctps_jax.training.state import TrainState, nested, supports_by_path

Shapes = Mapping[str, tuple[int, ...]]


def is_compact(state: TrainState) -> bool:
    """Return whether any layer of ``state`` is compact. The two forms are never mixed."""
    return any(support.dtype != bool for support in jax.tree.leaves(state.supports))


def to_compact(state: TrainState, counts: Mapping[str, int]) -> TrainState:
    """Return a masked state in its compact form; ``counts`` are the numbers of trained weights by path of the layers.

    A state that is compact already, or dense, is returned unchanged. Works under ``jax.jit``.
    """
    if is_compact(state):
        return state
    positions = {path: _positions(mask, counts[path]) for path, mask in supports_by_path(state.supports).items()}
    supports = nested({path: {"support": support} for path, support in positions.items()})
    converters = {path: partial(_gather, support) for path, support in positions.items()}
    return _convert(state, supports, converters)


def to_masked(state: TrainState, shapes: Shapes) -> TrainState:
    """Return a compact state in its masked form; ``shapes`` are the kernel shapes by path of the layers.

    A state that is masked already, or dense, is returned unchanged. Works under ``jax.jit``.
    """
    if not is_compact(state):
        return state
    positions = supports_by_path(state.supports)
    masks = {path: {"mask": _mask_of(support, shapes[path])} for path, support in positions.items()}
    converters = {path: partial(_spread, support, shapes[path]) for path, support in positions.items()}
    return _convert(state, nested(masks), converters)


def _mask_of(support: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    kind: Any = np if isinstance(support, np.ndarray) else jnp
    return _spread(support, shape, kind.ones(support.shape, np.int8)) != 0


def _positions(mask: jax.Array, count: int) -> jax.Array:
    found: Any = np.flatnonzero(mask) if isinstance(mask, np.ndarray) else jnp.flatnonzero(mask, size=count)
    return found.astype(jnp.int32)


def _spread(positions: jax.Array, shape: tuple[int, ...], values: jax.Array) -> jax.Array:
    if isinstance(values, np.ndarray):
        spread: Any = np.zeros(shape, values.dtype)
        spread.reshape(-1)[positions] = values
        return spread
    return add_at(jnp.zeros(shape, values.dtype), positions, values)


def _gather(positions: jax.Array, kernel: jax.Array) -> jax.Array:
    return kernel.reshape(math.prod(kernel.shape))[positions]


def _convert(
    state: TrainState,
    supports: Any,
    converters: Mapping[str, Callable[[jax.Array], jax.Array]],
) -> TrainState:
    """Apply ``converters`` to the kernels of the layers that they name, and to the optimiser's arrays for them."""

    def converter_of(path: Any, _: Any) -> Callable[[jax.Array], jax.Array]:
        *layer, name = (entry.key for entry in path)
        return converters.get(".".join(map(str, layer)), _same) if name == "kernel" else _same

    by_leaf = jax.tree_util.tree_map_with_path(converter_of, state.params)

    def converted(params: Any) -> Any:
        return jax.tree.map(lambda convert, leaf: convert(leaf), by_leaf, params)

    averages = state.averages
    return state._replace(
        params=converted(state.params),
        averages=averages if averages is None else averages | {"params": converted(averages["params"])},
        supports=supports,
        opt_state=map_moments(lambda array, convert: convert(array), state.opt_state, state.params, by_leaf),
    )


def _same(array: jax.Array) -> jax.Array:
    return array
