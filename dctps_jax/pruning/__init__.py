"""Which weights are trained: how many per layer, and which ones."""

import difflib
from collections.abc import Iterable, Mapping

import jax
import numpy as np
from flax import nnx

from dctps_jax.errors import UserError
from dctps_jax.layers import prunable_layers
from dctps_jax.pruning.allocation import ALLOCATIONS, allocate
from dctps_jax.pruning.masks import apply_masks, get_masks
from dctps_jax.pruning.random import random_masks

__all__ = ["ALLOCATIONS", "METHODS", "allocate", "apply_masks", "get_masks", "prune", "random_masks"]

METHODS = tuple(ALLOCATIONS)


def prune(
    model: nnx.Module,
    method: str,
    density: float,
    *,
    key: jax.Array,
    batch: tuple[jax.Array, jax.Array] | None = None,
    dense_layers: Iterable[str] = (),
    layer_densities: Mapping[str, float] | Iterable[tuple[str, float]] = (),
) -> dict[str, np.ndarray]:
    """Choose the weights that stay: a boolean mask for every prunable layer, by dotted path. The model is unchanged.

    ``method`` is an allocation (``uniform``, ``epf``, ``epl``, ``erk``) whose counts are placed at random from ``key``.
    ``batch`` (images, integer labels) is for methods that look at data; these do not. ``dense_layers`` and
    ``layer_densities`` as in :func:`allocate`. Raises :class:`~dctps_jax.errors.UserError` for an unknown method.
    """
    if method not in METHODS:
        close = difflib.get_close_matches(method, METHODS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise UserError(f"there is no pruning method {method!r}{hint}; the methods are: {', '.join(METHODS)}")
    shapes = {path: layer.kernel_shape for path, layer in prunable_layers(model).items()}
    counts = allocate(shapes, density, method, dense_layers=dense_layers, layer_densities=layer_densities)
    return random_masks(key, shapes, counts)
