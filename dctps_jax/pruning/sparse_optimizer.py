"""Masks for your own training loop: any optax optimiser and any tree of parameters."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.core import Tracer

from dctps_jax.errors import UserError, first_line
from dctps_jax.pruning.masks import NOTHING_KEPT, check_mask


def keep_masked(tree: Any, masks: Any) -> Any:
    """Return ``tree`` with zeros where its mask is False.

    ``masks`` has the structure of ``tree``, with None for an array or a whole subtree that is kept. For an
    ``nnx.State`` it may be nested dicts. A mask has the shape of its array and only the values 0 and 1; other masks
    raise :class:`~dctps_jax.errors.UserError`.
    """
    check_values_of_masks(masks)
    return keep_checked(tree, masks)


def keep_checked(tree: Any, masks: Any) -> Any:
    """Do the same as :func:`keep_masked`, for masks whose values were checked before: reading them again takes time."""
    masks = as_tree(masks, tree)
    _check_fit(tree, masks)
    return jax.tree.map(lambda mask, part: part if mask is None else jnp.where(mask, part, 0), masks, tree,
                        is_leaf=is_none)  # fmt: skip


def sparse_optimizer(
    optimizer: optax.GradientTransformation | optax.MultiSteps, masks: Any
) -> optax.GradientTransformationExtraArgs:
    """Return an optimiser that changes only the weights that ``masks`` keep (see :func:`keep_masked`).

    For all other weights, gradients are set to zero before ``optimizer`` sees them, so that its moments stay zero.
    Their updates are set to zero afterwards, in case it adds weight decay. Start from ``keep_masked(params, masks)``.
    Further arguments of an update, e.g. the loss as ``value``, go to an ``optimizer`` that takes them.

    With ``nnx.Optimizer`` the masks are nested dicts by the names of the model's attributes.

    ``init`` raises :class:`~dctps_jax.errors.UserError` for masks that do not fit the parameters.
    """
    inner = as_transformation("optimizer", optimizer)

    def init(params: Any) -> Any:
        check_masks_of_tree(params, masks)
        return inner.init(params)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        updates, state = inner.update(keep_checked(updates, masks), state, params, **extra_args)
        return keep_checked(updates, masks), state

    return optax.GradientTransformationExtraArgs(init, update)


def as_transformation(name: str, optimizer: Any) -> optax.GradientTransformationExtraArgs:
    """Return an optimiser of optax as a transformation, ``optax.MultiSteps`` included.

    Raises :class:`~dctps_jax.errors.UserError` for anything else.
    """
    if isinstance(optimizer, optax.MultiSteps):
        optimizer = optimizer.gradient_transformation()
    if not isinstance(optimizer, optax.GradientTransformation):
        raise UserError(
            f"{name} is {type(optimizer).__name__}; it must be a transformation of optax, e.g. optax.adam(0.001)"
        )
    return optax.with_extra_args_support(optimizer)


def check_values_of_masks(masks: Any) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` for masks that are not arrays of 0 and 1, or keep no weight at all."""
    arrays = jax.tree_util.tree_leaves_with_path(masks)
    for path, mask in arrays:
        check_mask(mask, _name(path))
    if arrays and not any(isinstance(mask, Tracer) or np.asarray(mask).any() for _, mask in arrays):
        raise UserError(NOTHING_KEPT)


def check_masks_of_tree(tree: Any, masks: Any) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` unless masks fit the arrays of a tree, as :func:`keep_masked` says."""
    check_values_of_masks(masks)
    _check_fit(tree, as_tree(masks, tree))


def as_tree(masks: Any, tree: Any) -> Any:
    """Return masks in the containers of a tree if that is an ``nnx.State``, as ``nnx.Optimizer`` has it.

    A State takes masks in dicts, or in a State, whose items may be variables.
    """
    if not isinstance(tree, nnx.State) or not isinstance(masks, nnx.State | Mapping):
        return masks
    values = jax.tree.map(
        lambda node: node.get_value() if _is_variable(node) else node,
        masks,
        is_leaf=lambda node: is_none(node) or _is_variable(node),
    )
    return values if isinstance(values, nnx.State) else nnx.State(values)


def _check_fit(tree: Any, masks: Any) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` for masks with another structure or other shapes than the arrays."""
    of_masks = dict(jax.tree_util.tree_leaves_with_path(masks, is_leaf=is_none))
    # A mask may replace a variable of nnx, which is a tree of one array.
    is_in_variables = any(map(_is_variable, jax.tree.leaves(masks, is_leaf=_is_variable)))
    arrays = dict(jax.tree_util.tree_leaves_with_path(tree, is_leaf=None if is_in_variables else _is_variable))
    for path, array in arrays.items():
        if not any(path[:length] in of_masks for length in range(len(path) + 1)):
            raise UserError(
                f"the masks have nothing for {_name(path)}, an array of shape {_shape(array)}; give it a mask of "
                "its shape, or None to keep all of it"
            )
    for path, mask in of_masks.items():
        if mask is not None and path not in arrays:
            raise UserError(
                f"there is no array {_name(path)} for a mask of shape {_shape(mask)}; the arrays are: "
                f"{', '.join(map(_name, arrays)) or 'none'}"
            )
        if mask is not None and _shape(mask) != _shape(arrays[path]):
            raise UserError(
                f"the mask of {_name(path)} has shape {_shape(mask)}, and the array {_shape(arrays[path])}; give "
                "each array a mask of its shape, or None"
            )
    try:
        jax.tree.structure(masks, is_leaf=is_none).flatten_up_to(tree)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the masks are in a tree of another structure than the arrays: {first_line(error)}; give them in the same "
            "lists, tuples and dicts, with None for a part that is kept"
        ) from error


def is_none(node: Any) -> bool:
    """Return whether a node of a tree of masks is None, which keeps a whole part."""
    return node is None


def _shape(array: Any) -> tuple[int, ...]:
    return getattr(array, "shape", ())


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def _name(path: Sequence[Any]) -> str:
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/") or "the array"
