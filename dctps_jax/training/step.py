"""The state of a training run and the pure functions that advance and evaluate it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from dctps_jax.data.batches import Normalization, Split, normalize
from dctps_jax.layers import Mask
from dctps_jax.pruning.dynamic import keep_only, move_weights, skip_optimizer_step
from dctps_jax.pruning.scores import unmasked_copy

NO_BAD_STEP = jnp.iinfo(jnp.int32).max


class TrainState(NamedTuple):
    """Everything that a restart needs and nothing else, as plain nested dicts of arrays.

    ``frozen`` holds what is neither trained nor a statistic nor a mask: the αs that keep their initial value.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    masks: Any
    frozen: Any
    opt_state: Any


class Graphs(NamedTuple):
    """A network without its arrays, for training, for evaluation, and for training without masks (dense gradients)."""

    train: nnx.GraphDef
    eval: nnx.GraphDef
    dense: nnx.GraphDef


class Sums(NamedTuple):
    """Sums over the steps of an epoch, kept on the device.

    ``bad_step`` is the first step with a loss not finite, ``moved`` how many weights mask updates have grown, by layer.
    """

    loss: jax.Array
    correct: jax.Array
    images: jax.Array
    bad_step: jax.Array
    moved: jax.Array


def create_state(model: nnx.Module, optimizer: optax.GradientTransformation) -> tuple[Graphs, TrainState]:
    """Split ``model`` into its two graphs and an initial state. The state shares no buffers with the model."""
    model.eval()
    eval_graph = nnx.graphdef(model)
    model.train()
    train_graph, *parts = nnx.split(model, nnx.Param, nnx.BatchStat, Mask, ...)
    # Copies: a donated state would otherwise delete the model's own arrays.
    params, batch_stats, masks, frozen = (jax.tree.map(jnp.copy, nnx.to_pure_dict(part)) for part in parts)
    state = TrainState(jnp.zeros((), jnp.int32), params, batch_stats, masks, frozen, optimizer.init(params))
    dense_graph = nnx.graphdef(unmasked_copy(model))
    return Graphs(train_graph, eval_graph, dense_graph), state


def merge(graph: nnx.GraphDef, state: TrainState) -> nnx.Module:
    """Put a network's graph and the arrays of a state together again."""
    return nnx.merge(graph, state.params, state.batch_stats, state.masks, state.frozen)


def zero_sums(num_layers: int = 1) -> Sums:
    # Buffers of their own: donation refuses one that occurs twice.
    return Sums(
        jnp.zeros((), jnp.float32),
        jnp.zeros((), jnp.int32),
        jnp.zeros((), jnp.int32),
        jnp.array(NO_BAD_STEP, jnp.int32),
        jnp.zeros((num_layers,), jnp.int32),
    )


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the cross-entropy of each example, in float32 or wider whatever the network computes in."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def _loss_of(graph: nnx.GraphDef, others: tuple[Any, ...], batch: tuple[jax.Array, jax.Array]) -> Any:
    """Return ``params → (mean loss, ({"correct": count}, new batch_stats))`` of a batch; ``others`` complete the state."""
    images, labels = batch

    def loss_fn(params: Any) -> Any:
        model = nnx.merge(graph, params, *others)
        logits = model(images)
        correct = jnp.sum(logits.argmax(-1) == labels)
        batch_stats = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
        return cross_entropy(logits, labels).mean(), ({"correct": correct}, batch_stats)

    return loss_fn


def train_step(
    state: TrainState,
    batch: tuple[jax.Array, jax.Array],
    *,
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Take one optimiser step on ``batch`` (normalised images, labels); return the new state and the batch's metrics.

    The metrics are ``loss`` (mean, before the update) and ``correct`` (count).
    """
    loss_fn = _loss_of(graph, (state.batch_stats, state.masks, state.frozen), batch)
    (loss, (metrics, batch_stats)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    state = state._replace(step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state)
    return state, metrics | {"loss": loss}


def mask_update_step(
    state: TrainState, batch: tuple[jax.Array, jax.Array], num_drop: Any, growth_key: jax.Array | None,
    *, graph: nnx.GraphDef, optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, jax.Array], Any]:  # fmt: skip
    """Move weights instead of taking an optimiser step; return the state, the batch's metrics and what moved.

    ``num_drop`` holds the number of weights to drop at the place of each mask in ``state.masks``; what moved has the same
    form. ``graph`` is the network without masks. RigL grows by the gradient of the dense kernel on this batch; with a
    ``growth_key`` (SET) growth is random and no gradient is computed.
    """
    loss_fn = _loss_of(graph, (state.batch_stats, state.frozen), batch)
    gradients = None
    if growth_key is None:
        (loss, (metrics, batch_stats)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    else:
        loss, (metrics, batch_stats) = loss_fn(state.params)

    masks, moved, kept = {}, {}, jax.tree.map(lambda _: jnp.ones((), bool), state.params)
    mask_leaves, structure = jax.tree_util.tree_flatten_with_path(state.masks)
    for position, ((path, mask), drop) in enumerate(zip(mask_leaves, jax.tree.leaves(num_drop), strict=True)):
        place = (*(entry.key for entry in path[:-1]), "kernel")
        if growth_key is None:
            growth = jnp.abs(_at(gradients, place))
        else:
            growth = jax.random.uniform(jax.random.fold_in(growth_key, position), mask.shape)
        masks[path], kept_here = move_weights(_at(state.params, place), mask, growth, drop)
        moved[path] = jnp.sum(masks[path] & ~mask)
        kept = _with(kept, place, kept_here)
    params = jax.tree.map(lambda value, mask: jnp.where(mask, value, 0), state.params, kept)
    opt_state = skip_optimizer_step(keep_only(optimizer, state.opt_state, kept))
    state = state._replace(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        masks=jax.tree.unflatten(structure, list(masks.values())),
        opt_state=opt_state,
    )
    return state, metrics | {"loss": loss}, jax.tree.unflatten(structure, list(moved.values()))


def masks_by_path(masks: Any) -> dict[str, jax.Array]:
    """Return the masks of a state by dotted path of their layers, in the state's order."""
    leaves = jax.tree_util.tree_leaves_with_path(masks)
    return {".".join(str(entry.key) for entry in path[:-1]): mask for path, mask in leaves}


def _at(tree: Any, place: tuple) -> Any:
    for name in place:
        tree = tree[name]
    return tree


def _with(tree: Any, place: tuple, value: Any) -> Any:
    """Return ``tree`` with ``value`` at ``place``."""
    name, *rest = place
    return tree | {name: _with(tree[name], tuple(rest), value) if rest else value}


def add_metrics(sums: Sums, metrics: dict[str, jax.Array], step: jax.Array, batch_size: int) -> Sums:
    """Add one step's metrics to the sums of its epoch; ``step`` counts from 0."""
    bad_step = jnp.where(jnp.isfinite(metrics["loss"]), NO_BAD_STEP, step)
    return sums._replace(
        loss=sums.loss + metrics["loss"].astype(jnp.float32),
        correct=sums.correct + metrics["correct"].astype(jnp.int32),
        images=sums.images + batch_size,
        bad_step=jnp.minimum(sums.bad_step, bad_step.astype(jnp.int32)),
    )


def eval_step(
    state: TrainState, sums: Sums, data: Split, start: jax.Array,
    *, graph: nnx.GraphDef, batch_size: int, normalization: Normalization, sharding: jax.sharding.Sharding | None = None,
) -> Sums:  # fmt: skip
    """Add loss and correct answers of the images from ``start`` on to ``sums``; a last partial batch counts as it is.

    ``sharding`` splits a batch among the devices.
    """
    positions = start + jnp.arange(batch_size)
    valid = positions < len(data.labels)
    positions = jnp.minimum(positions, len(data.labels) - 1)
    images = normalize(data.images[positions], normalization)
    if sharding is not None:
        images = jax.lax.with_sharding_constraint(images, sharding)
    logits = merge(graph, state)(images)
    labels = data.labels[positions]
    losses = jnp.where(valid, cross_entropy(logits, labels), 0)
    correct = valid & (logits.argmax(-1) == labels)
    return sums._replace(
        loss=sums.loss + losses.sum().astype(jnp.float32),
        correct=sums.correct + correct.sum().astype(jnp.int32),
        images=sums.images + valid.sum().astype(jnp.int32),
    )
