"""RigL and SET in a training loop of your own: for trees with masks, as an optax transformation, and for NNX models.

Both take steps of an optimiser, and at every so many steps one that moves weights instead. Such a step needs the
gradient of the dense kernels: of all weights, also of those that are not trained.
"""

import functools
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.core import Tracer

from dctps_jax.arguments import check_choice, is_number, is_whole, words
from dctps_jax.errors import UserError
from dctps_jax.kernels import KernelLayer
from dctps_jax.prunable import prunable_layers
from dctps_jax.pruning.dynamic import MOVING, UpdateSchedule, keep_only, move_weights, skip_optimizer_step
from dctps_jax.pruning.sparse_optimizer import (
    check_masks_of_tree,
    check_optimizer,
    check_values_of_masks,
    is_none,
    keep_checked,
)
from dctps_jax.seeds import as_key

MASKED_GRADIENTS = (
    "the gradients of a move are zero at all weights that are not trained, so that they say nothing of where weights "
    "should grow; give the gradients of the dense kernels: those of unmasked_copy(model), or of the whole arrays"
)


class DynamicSparseState(NamedTuple):
    """The state of :func:`dynamic_sparse`: finished steps, the present masks, the state of the inner optimiser."""

    step: jax.Array
    masks: Any
    inner: Any


class DynamicSparse(optax.GradientTransformationExtraArgs):
    """An optax transformation with masks that move; :func:`dynamic_sparse` makes it."""

    moves: "Moves"
    inner: optax.GradientTransformationExtraArgs

    def is_move(self, step: int) -> bool:
        """Return whether the step after ``step`` finished steps is to be :meth:`move` in place of ``update``."""
        return self.moves.schedule.is_update(step)

    def move(self, gradients: Any, state: Any, params: Any) -> tuple[Any, DynamicSparseState]:
        """Move weights by the gradients of the dense arrays; return the new parameters and the new state.

        The masks of the state follow. Weights that were not trained before, and their moments, are zero. The learning
        rate counts the step, the inner optimiser takes none. At a step that is no move, nothing moves.
        """
        if not isinstance(state, DynamicSparseState):
            raise UserError(f"state is {words(state)}; it must be what init, update or move has returned")
        parts = zip(*(_masked_parts(state.masks, tree) for tree in (params, state.masks, gradients)), strict=True)
        moved = self.moves.apply(state.step, parts)
        kept = _like(state.masks, params, [kept for _, kept in moved])
        params = jax.tree.map(lambda value, keep: jnp.where(keep, value, 0), params, kept)
        masks = jax.tree.unflatten(jax.tree.structure(state.masks), [mask for mask, _ in moved])
        inner = skip_optimizer_step(keep_only(self.inner, state.inner, kept))
        return params, DynamicSparseState(state.step + 1, masks, inner)


def dynamic_sparse(
    optimizer: optax.GradientTransformation,
    masks: Any,
    *,
    end_step: int,
    method: str = "rigl",
    update_every: int = 100,
    drop_fraction: float = 0.3,
    key: jax.Array | int | None = None,
) -> DynamicSparse:
    """Return an optimiser for the weights that masks keep, and move masks by RigL or SET while training.

    ``init`` and ``update`` are those of :func:`sparse_optimizer`, with the masks in the state. The caller asks
    ``is_move(step)`` for each step, and calls ``move(gradients, state, params)`` where it is one.

    - ``masks``: has the structure of the parameters, with None in place of an array or of a whole subtree that is kept.
    - ``end_step``: weights move before this step only, at every ``update_every``-th.
    - ``method``: "rigl" grows where the gradient of the dense array is largest (Evci et al. 2020), "set" at random
      positions from ``key`` (Mocanu et al. 2018).
    - ``drop_fraction``: the part of the trained weights of an array that moves at the start; it falls to 0 by a cosine.

    Raises :class:`~dctps_jax.errors.UserError` for a method or number out of range, and ``init`` for masks that do not
    fit the parameters.
    """
    check_optimizer("optimizer", optimizer)
    check_values_of_masks(masks)
    moves = Moves.make([np.asarray(mask) != 0 for mask in jax.tree.leaves(masks)], method, update_every, end_step,
                       drop_fraction, key)  # fmt: skip
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> DynamicSparseState:
        check_masks_of_tree(params, masks)
        booleans = jax.tree.map(lambda mask: jnp.array(mask != 0), masks)
        return DynamicSparseState(jnp.zeros((), jnp.int32), booleans, inner.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, DynamicSparseState]:
        updates, inner_state = inner.update(keep_checked(updates, state.masks), state.inner, params, **extra_args)
        return keep_checked(updates, state.masks), DynamicSparseState(state.step + 1, state.masks, inner_state)

    transformation = DynamicSparse(init, update)
    transformation.moves, transformation.inner = moves, inner
    return transformation


class DynamicSparseOptimizer(nnx.Optimizer):
    """An ``nnx.Optimizer`` for a network with masks, which RigL or SET move while it trains.

    ``update(model, gradients)`` is that of ``nnx.Optimizer``. Where ``is_move(step)``, call ``move(model, gradients)``
    instead, with the gradients of ``unmasked_copy(model)``. The other arguments are those of :func:`dynamic_sparse`.

    Raises :class:`~dctps_jax.errors.UserError` for a network without masks, e.g. a compact one.
    """

    def __init__(
        self,
        model: nnx.Module,
        tx: optax.GradientTransformation,
        *,
        wrt: Any = nnx.Param,
        end_step: int,
        method: str = "rigl",
        update_every: int = 100,
        drop_fraction: float = 0.3,
        key: jax.Array | int | None = None,
    ):
        check_optimizer("tx", tx)
        _check_filter("wrt", wrt)
        masks = [np.asarray(layer.mask[...]) for layer in _masked_layers(model).values() if layer.mask is not None]
        super().__init__(model, tx, wrt=wrt)
        self.moves = Moves.make(masks, method, update_every, end_step, drop_fraction, key)

    def is_move(self, step: int) -> bool:
        """Return whether the step after ``step`` finished steps is to be :meth:`move` in place of ``update``."""
        return self.moves.schedule.is_update(step)

    def move(self, model: nnx.Module, gradients: Any) -> None:
        """Move weights of the model by the gradients of its unmasked copy, as :meth:`DynamicSparse.move` does.

        The statistics of BatchNorm stay: they are those of the copy that the gradients come from.
        """
        layers = _masked_layers(model)
        of_gradients = {".".join(map(str, path)): value for path, value in nnx.to_flat_state(gradients)}
        parts = [
            (layer.kernel[...], layer.mask[...], jnp.asarray(of_gradients[_kernel_at(path)][...]))
            for path, layer in layers.items()
            if layer.mask is not None
        ]
        moved = dict(zip(layers, self.moves.apply(self.step[...].astype(jnp.int32), parts), strict=True))
        kept_at = {_kernel_at(path): kept for path, (_, kept) in moved.items()}
        for path, layer in layers.items():
            assert layer.mask is not None
            layer.kernel.set_value(jnp.where(moved[path][1], layer.kernel[...], 0))
            layer.mask.set_value(moved[path][0])
        params = nnx.as_pure(nnx.state(model, self.wrt))
        kept = nnx.map_state(lambda path, _: kept_at.get(".".join(map(str, path)), jnp.ones((), bool)), params)
        state = skip_optimizer_step(keep_only(self.tx, nnx.as_pure(self.opt_state), kept))
        nnx.update(self.opt_state, nnx.state(state))
        self.step[...] += 1


def _check_filter(name: str, value: Any) -> None:
    try:
        nnx.filterlib.to_predicate(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} is {words(value)}; it must be a filter of nnx, e.g. nnx.Param") from error


class Moves:
    """When weights move, and how many of each masked array: a row of ``drops`` for each move. Compared by identity."""

    def __init__(self, schedule: UpdateSchedule, drops: np.ndarray, key: jax.Array | None):
        self.schedule, self.drops, self.key = schedule, drops, key

    @classmethod
    def make(
        cls,
        masks: Sequence[np.ndarray],
        method: str,
        update_every: int,
        end_step: int,
        drop_fraction: float,
        key: jax.Array | int | None,
    ) -> "Moves":
        """Return the moves of masked arrays; the numbers are those of the trainer."""
        check_choice("method", method, MOVING)
        for name, value in (("update_every", update_every), ("end_step", end_step)):
            if not is_whole(value) or value < 1:
                raise UserError(f"{name} is {words(value)}; it must be a whole number of at least 1")
        if not is_number(drop_fraction) or not 0 <= drop_fraction <= 1:
            raise UserError(f"drop_fraction is {words(drop_fraction)}; it must be from 0 to 1")
        if method == "set" and key is None:
            raise UserError("method is 'set', which draws random positions; give it a key, e.g. key=0")
        if method != "set" and key is not None:
            raise UserError(f"key is {words(key)}, but method {method!r} draws nothing at random; leave out key")
        if not masks:
            raise UserError("there is no mask, so that no weight could move; give a mask to each array that is sparse")
        schedule = UpdateSchedule(update_every, end_step, drop_fraction)
        counts, sizes = ({str(n): int(of(mask)) for n, mask in enumerate(masks)} for of in (np.sum, np.size))
        steps = range(update_every - 1, end_step - 1, update_every)
        drops = [list(schedule.drop_counts(step, counts, sizes).values()) for step in steps]
        seeded = None if key is None else as_key(key)
        return cls(schedule, np.array(drops, np.int32).reshape(len(drops), len(masks)), seeded)

    def apply(self, step: jax.Array, parts: Any) -> list[tuple[jax.Array, jax.Array]]:
        """Return (new mask, kept) for each (array, mask, gradient), as :func:`move_weights` does."""
        num_drop = jnp.zeros(self.drops.shape[1], jnp.int32)
        if len(self.drops):
            row = jnp.clip((step + 1) // self.schedule.update_every - 1, 0, len(self.drops) - 1)
            num_drop = jnp.where(self.schedule.is_update(step), jnp.asarray(self.drops)[row], 0)
        moved, parts = [], list(parts)
        if self.key is None:
            _check_dense(num_drop.any(), [(mask, gradient) for _, mask, gradient in parts])
        for number, (array, mask, gradient) in enumerate(parts):
            if jnp.shape(gradient) != jnp.shape(array):
                raise UserError(
                    f"a gradient has shape {jnp.shape(gradient)}, and its array {jnp.shape(array)}; give the gradients "
                    "of the dense arrays, in a tree like the parameters"
                )
            growth = jnp.abs(gradient)
            if self.key is not None:
                growth = jax.random.uniform(jax.random.fold_in(jax.random.fold_in(self.key, step), number), mask.shape)
            moved.append(move_weights(array, mask, growth, num_drop[number]))
        return moved


def _check_dense(is_move: jax.Array, parts: Sequence[tuple[jax.Array, jax.Array]]) -> None:
    """Refuse gradients that are zero wherever a mask is False: they say of no new weight whether it should grow.

    In a program that is traced the values are not known yet, and the log has a warning when it runs.
    """
    if any(jnp.shape(mask) != jnp.shape(gradient) for mask, gradient in parts):
        return
    on_mask, off_mask = (
        jnp.array([jnp.any((gradient != 0) & (mask == is_on)) for mask, gradient in parts]).any()
        for is_on in (True, False)
    )
    is_masked = is_move & on_mask & ~off_mask
    if isinstance(is_masked, Tracer):
        jax.debug.callback(_warn_of_masked_gradients, is_masked)
    elif is_masked and not all(np.asarray(mask).all() for mask, _ in parts):
        raise UserError(MASKED_GRADIENTS)


def _warn_of_masked_gradients(is_masked: Any) -> None:
    if is_masked:
        logging.getLogger("dctps_jax").warning(MASKED_GRADIENTS)


def _masked_layers(model: nnx.Module) -> dict[str, KernelLayer]:
    layers = {path: layer for path, layer in prunable_layers(model).items() if layer.mask is not None}
    if not layers:
        raise UserError(
            'the model has no layer with a mask, so that no weight could move; make it with form="masked", e.g. '
            'convert(model, density=0.05, form="masked")'
        )
    return layers


def _kernel_at(path: str) -> str:
    return f"{path}.kernel" if path else "kernel"


def _masked_parts(masks: Any, tree: Any) -> list[Any]:
    """Return the arrays of ``tree`` that have a mask, in the order of the masks."""
    parts: list[Any] = []
    jax.tree.map(lambda mask, part: None if mask is None else parts.append(part), masks, tree, is_leaf=is_none)
    return parts


def _like(masks: Any, tree: Any, parts: Sequence[jax.Array]) -> Any:
    """Return a tree of booleans like ``tree``: ``parts`` for the arrays with a mask, True for all others."""
    remaining = iter(parts)
    ones = functools.partial(jax.tree.map, lambda _: jnp.ones((), bool))
    return jax.tree.map(
        lambda mask, part: ones(part) if mask is None else next(remaining), masks, tree, is_leaf=is_none
    )
