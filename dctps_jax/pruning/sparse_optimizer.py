"""Masks for your own training loop: any optax optimiser and any tree of parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from dctps_jax.errors import UserError


def keep_masked(tree: Any, masks: Any) -> Any:
    """Return ``tree`` with zeros where its mask is False.

    ``masks`` has the structure of ``tree``, with None in place of an array or of a whole subtree that is kept. A mask
    has the shape of its array; another one raises :class:`~dctps_jax.errors.UserError`.
    """

    def keep(path: Any, mask: Any, part: Any) -> Any:
        if mask is None:
            return part
        if jnp.shape(mask) != jnp.shape(part):
            raise UserError(
                f"the mask of {jax.tree_util.keystr(path, simple=True, separator='/') or 'the array'} has shape "
                f"{jnp.shape(mask)}, and the array {jnp.shape(part)}; give each array a mask of its shape, or None"
            )
        return jnp.where(mask, part, 0)

    return jax.tree_util.tree_map_with_path(keep, masks, tree, is_leaf=lambda mask: mask is None)


def sparse_optimizer(optimizer: optax.GradientTransformation, masks: Any) -> optax.GradientTransformationExtraArgs:
    """Return an optimiser that changes only the weights that ``masks`` keep (see :func:`keep_masked`).

    For all other weights, gradients are set to zero before ``optimizer`` sees them, so that its moments stay zero.
    Their updates are set to zero after it, in case it adds weight decay. Start from ``keep_masked(params, masks)``.
    Further arguments of an update, e.g. the loss as ``value``, go to an ``optimizer`` that takes some.
    """
    inner = optax.with_extra_args_support(optimizer)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        updates, state = inner.update(keep_masked(updates, masks), state, params, **extra_args)
        return keep_masked(updates, masks), state

    return optax.GradientTransformationExtraArgs(inner.init, update)
