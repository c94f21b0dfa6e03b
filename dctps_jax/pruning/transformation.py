"""Masks for your own training loop: any optax optimiser and any tree of parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def keep_masked(tree: Any, masks: Any) -> Any:
    """Return ``tree`` with zeros where its mask is False.

    ``masks`` has the structure of ``tree``, with None in place of an array or of a whole subtree that is kept.
    """

    def keep(mask: Any, part: Any) -> Any:
        return part if mask is None else jnp.where(mask, part, 0)

    return jax.tree.map(keep, masks, tree, is_leaf=lambda mask: mask is None)


def sparse_optimizer(optimizer: optax.GradientTransformation, masks: Any) -> optax.GradientTransformation:
    """Return an optimiser that changes only the weights that ``masks`` keep (see :func:`keep_masked`).

    For all other weights, gradients are set to zero before ``optimizer`` sees them, so that its moments stay zero.
    Their updates are set to zero after it, in case it adds weight decay. Start from ``keep_masked(params, masks)``.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = optimizer.update(keep_masked(updates, masks), state, params)
        return keep_masked(updates, masks), state

    return optax.GradientTransformation(optimizer.init, update)
