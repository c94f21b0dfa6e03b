"""RigL and SET in your own training loop: for trees with masks, as an optax transformation, and for NNX models.

Both take steps of an optimiser. At every ``update_every``-th step they move weights instead. Such a step needs the
gradient of the dense kernels: of all weights, also of weights that are not trained.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dctps_jax.arguments import check_has_arrays, check_model, names_of, words
from dctps_jax.errors import UserError
from dctps_jax.kernels import KernelLayer
from dctps_jax.prunable import prunable_layers
from dctps_jax.pruning.dynamic import keep_only, skip_optimizer_step
from dctps_jax.pruning.moves import Moves
from dctps_jax.pruning.sparse_optimizer import (
    as_transformation,
    as_tree,
    check_masks_of_tree,
    check_values_of_masks,
    is_none,
    keep_checked,
)


class DynamicSparseState(NamedTuple):
    """The state of :func:`dynamic_sparse`: finished steps, the present masks, the state of the inner optimiser."""

    step: jax.Array
    masks: Any
    inner: Any


class DynamicSparse(optax.GradientTransformationExtraArgs):
    """An optax transformation with masks that move; :func:`dynamic_sparse` makes it."""

    moves: Moves

    def is_move(self, step: int) -> bool:
        """Return whether, after ``step`` finished steps, :meth:`move` should be called in place of ``update``."""
        return self.moves.schedule.is_update(step)

    def move(self, gradients: Any, state: Any, params: Any) -> tuple[Any, DynamicSparseState]:
        """Move weights by the gradients of the dense arrays; return the new parameters and the new state.

        The masks of the state follow. Weights that were not trained before are zero, and so are their moments. The
        learning rate counts the step, but the inner optimiser takes none. At a step that is not a move, nothing moves.

        Raises :class:`~dctps_jax.errors.UserError` for masks that keep other numbers of weights than at the start.
        """
        if not isinstance(state, DynamicSparseState):
            raise UserError(f"state is {words(state)}; it must be what init, update or move has returned")
        parts = zip(*(_masked_parts(state.masks, tree) for tree in (params, state.masks, gradients)), strict=True)
        moved = self.moves.apply(state.step, parts)
        kept = _like(state.masks, params, [kept for _, kept in moved])
        params = jax.tree.map(lambda value, keep: jnp.where(keep, value, 0), params, kept)
        masks = jax.tree.unflatten(jax.tree.structure(state.masks), [mask for mask, _ in moved])
        inner = skip_optimizer_step(keep_only(state.inner, kept))
        return params, DynamicSparseState(state.step + 1, masks, inner)


def dynamic_sparse(
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    masks: Any,
    *,
    end_step: int,
    method: str = "rigl",
    update_every: int = 100,
    drop_fraction: float = 0.3,
    key: jax.Array | int | None = None,
) -> DynamicSparse:
    """Return an optimiser for the weights that masks keep; it moves the masks by RigL or SET while training.

    ``init`` and ``update`` work as in :func:`sparse_optimizer`, with the masks in the state. The caller asks
    ``is_move(step)`` at each step, and calls ``move(gradients, state, params)`` if the answer is True.

    - ``masks``: has the structure of the parameters, with None for an array or a whole subtree that is kept.
    - ``end_step``: weights move at every ``update_every``-th step before this one.
    - ``method``: "rigl" grows where the gradient of the dense array is largest (Evci et al. 2020), "set" at random
      positions from ``key`` (Mocanu et al. 2018).
    - ``drop_fraction``: the part of an array's trained weights that moves at the start; it falls to 0 by a cosine.

    Raises :class:`~dctps_jax.errors.UserError` for a method or number out of range. ``init`` raises it for masks that
    do not fit the parameters.
    """
    inner = as_transformation("optimizer", optimizer)
    check_values_of_masks(masks)
    moves = Moves.make([np.asarray(mask) != 0 for mask in jax.tree.leaves(masks)], method, update_every, end_step,
                       drop_fraction, key)  # fmt: skip

    def init(params: Any) -> DynamicSparseState:
        check_masks_of_tree(params, masks)
        booleans = jax.tree.map(lambda mask: jnp.array(mask != 0), as_tree(masks, params))
        return DynamicSparseState(jnp.zeros((), jnp.int32), booleans, inner.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, DynamicSparseState]:
        updates, inner_state = inner.update(keep_checked(updates, state.masks), state.inner, params, **extra_args)
        return keep_checked(updates, state.masks), DynamicSparseState(state.step + 1, state.masks, inner_state)

    transformation = DynamicSparse(init, update)
    transformation.moves = moves
    return transformation


class DynamicSparseOptimizer(nnx.Optimizer):
    """An ``nnx.Optimizer`` for a network with masks, which RigL or SET move while it trains.

    Call ``update(model, gradients)`` as for ``nnx.Optimizer``. If ``is_move(step)``, call ``move(model, gradients)``
    instead, with the gradients of ``unmasked_copy(model)``. The other arguments are as in :func:`dynamic_sparse`.

    Raises :class:`~dctps_jax.errors.UserError` for a network without masks, e.g. a compact one, and for layers that
    ``nnx.vmap`` has stacked. ``move`` raises it for a network that was pruned again after this optimiser was made.
    """

    def __init__(
        self,
        model: nnx.Module,
        tx: optax.GradientTransformation | optax.MultiSteps,
        *,
        wrt: Any = nnx.Param,
        end_step: int,
        method: str = "rigl",
        update_every: int = 100,
        drop_fraction: float = 0.3,
        key: jax.Array | int | None = None,
    ):
        tx = as_transformation("tx", tx)
        _check_filter("wrt", wrt)
        check_model(model)
        check_has_arrays("DynamicSparseOptimizer", model)
        layers = _masked_layers(model)
        if stacked := [".".join(map(str, path[:-1])) for path, layer in layers.items() if layer.stack]:
            raise UserError(
                f"nnx.vmap has stacked {names_of(stacked)}, and weights move within layers that are not stacked; keep "
                "them in an nnx.List"
            )
        masks = [np.asarray(layer.mask[...]) for layer in layers.values() if layer.mask is not None]
        super().__init__(model, tx, wrt=wrt)
        self.moves = Moves.make(masks, method, update_every, end_step, drop_fraction, key)

    def is_move(self, step: int) -> bool:
        """Return whether, after ``step`` finished steps, :meth:`move` should be called in place of ``update``."""
        return self.moves.schedule.is_update(step)

    def move(self, model: nnx.Module, gradients: Any) -> None:
        """Move weights of the model by the gradients of its unmasked copy, as :meth:`DynamicSparse.move` does.

        The model's statistics of BatchNorm stay: computing the gradients has only updated the statistics of the copy.
        """
        layers = _masked_layers(model)
        of_gradients = dict(nnx.to_flat_state(gradients))
        parts = [
            (layer.kernel[...], layer.mask[...], jnp.asarray(of_gradients[path][...]))
            for path, layer in layers.items()
            if layer.mask is not None
        ]
        moved = dict(zip(layers, self.moves.apply(self.step[...].astype(jnp.int32), parts), strict=True))
        for path, layer in layers.items():
            assert layer.mask is not None
            layer.kernel.set_value(jnp.where(moved[path][1], layer.kernel[...], 0))
            layer.mask.set_value(moved[path][0])
        params = nnx.as_pure(nnx.state(model, self.wrt))
        kept = nnx.map_state(lambda path, _: moved[path][1] if path in moved else jnp.ones((), bool), params)
        state = skip_optimizer_step(keep_only(nnx.as_pure(self.opt_state), kept))
        nnx.update(self.opt_state, nnx.state(state))
        self.step[...] += 1


def _check_filter(name: str, value: Any) -> None:
    try:
        nnx.filterlib.to_predicate(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} is {words(value)}; it must be a filter of nnx, e.g. nnx.Param") from error


def _masked_layers(model: nnx.Module) -> dict[tuple[Any, ...], KernelLayer]:
    """Return the layers with a mask by the path of their kernel in the states of nnx, in the order of nnx.

    A layer may have several paths, and their order of definition is lost when nnx merges the network. A state has one
    path for each layer, and one order.
    """
    masked = {id(layer.kernel): layer for layer in prunable_layers(model).values() if layer.mask is not None}
    layers = {path: masked[id(node)] for path, node in nnx.iter_graph(model) if id(node) in masked}
    if not layers:
        raise UserError(
            'the model has no layer with a mask, so that no weight could move; make it with form="masked", e.g. '
            'convert(model, density=0.05, form="masked")'
        )
    return layers


def _masked_parts(masks: Any, tree: Any) -> list[Any]:
    """Return the arrays of ``tree`` that have a mask, in the order of the masks."""
    parts: list[Any] = []
    jax.tree.map(
        lambda mask, part: None if mask is None else parts.extend(jax.tree.leaves(part)),  # the array of a variable
        masks,
        tree,
        is_leaf=is_none,
    )
    return parts


def _like(masks: Any, tree: Any, parts: Sequence[jax.Array]) -> Any:
    """Return a tree of booleans like ``tree``: ``parts`` for the arrays with a mask, True for all others."""
    remaining = iter(parts)
    ones = functools.partial(jax.tree.map, lambda _: jnp.ones((), bool))
    return jax.tree.map(
        lambda mask, part: ones(part) if mask is None else jax.tree.map(lambda _: next(remaining), part),
        masks,
        tree,
        is_leaf=is_none,
    )
