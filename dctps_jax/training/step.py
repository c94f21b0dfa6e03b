"""The pure functions that advance and evaluate a training state."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from dctps_jax.data.batches import Examples, Normalization, normalize
from dctps_jax.losses import cross_entropy
from dctps_jax.pruning.dynamic import keep_only, move_weights, skip_optimizer_step
from dctps_jax.training.forms import is_compact, to_compact, to_masked
from dctps_jax.training.gradients import Mesh, value_and_gradients
from dctps_jax.training.state import Graphs, TrainState, merge, nested, place_of, supports_by_path

NO_BAD_STEP = jnp.iinfo(jnp.int32).max


class Sums(NamedTuple):
    """Sums over the steps of an epoch, kept on the device.

    ``bad_step`` is the first step whose loss is not finite; ``moved`` counts the weights that mask updates have grown,
    by layer.
    """

    loss: jax.Array
    correct: jax.Array
    images: jax.Array
    bad_step: jax.Array
    moved: jax.Array


def zero_sums(num_layers: int = 1) -> Sums:
    # Each sum has its own buffer: donation refuses a buffer that occurs twice.
    return Sums(
        jnp.zeros((), jnp.float32),
        jnp.zeros((), jnp.int32),
        jnp.zeros((), jnp.int32),
        jnp.array(NO_BAD_STEP, jnp.int32),
        jnp.zeros((num_layers,), jnp.int32),
    )


def train_step(
    state: TrainState,
    batch: tuple[jax.Array, jax.Array],
    *,
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None = None,
    random: Any = MappingProxyType({}),
    ema_decay: float = 0.0,
    loss_scale: float = 1.0,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Take one optimiser step on ``batch`` (normalised images, labels); return the new state and the batch's metrics.

    The metrics are ``loss`` (mean, before the update) and ``correct`` (count). The batch is split along all axes of
    ``mesh``. With an ``ema_decay`` the state's averages are updated. ``loss_scale``: see
    :func:`~dctps_jax.training.gradients.value_and_gradients`.
    """
    (loss, (metrics, batch_stats)), gradients = value_and_gradients(
        graph, state, state.supports, batch, mesh, random, loss_scale
    )
    # Only a plateau uses the loss.
    value = {"value": loss} if isinstance(optimizer, optax.GradientTransformationExtraArgs) else {}
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, **value)
    params = optax.apply_updates(state.params, updates)
    averages = state.averages
    if ema_decay:
        averages = move_averages(averages, {"params": params, "batch_stats": batch_stats}, state.step, ema_decay)
    state = state._replace(
        step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state, averages=averages
    )
    return state, metrics | {"loss": loss}


def mask_update_step(
    state: TrainState,
    batch: tuple[jax.Array, jax.Array],
    num_drop: Mapping[str, Any],
    growth_key: jax.Array | None,
    *,
    graphs: Graphs,
    mesh: Mesh | None = None,
    loss_scale: float = 1.0,
) -> tuple[TrainState, dict[str, jax.Array], dict[str, jax.Array]]:
    """Move weights instead of taking an optimiser step; return the state, the batch's metrics and how many moved.

    ``num_drop`` is the number of weights that each layer drops, by path. The numbers of moved weights have the same
    form. RigL grows by the gradient of the dense kernel on this batch. With a ``growth_key`` (SET) growth is random and
    no gradient is computed. A compact state is masked for this step.
    """
    compact = is_compact(state)
    state = to_masked(state, graphs.shapes)
    # Under SET nothing uses the gradients: the compiler leaves them out.
    (loss, (metrics, batch_stats)), gradients = value_and_gradients(
        graphs.dense, state, {}, batch, mesh, graphs.random, loss_scale
    )
    masks, moved, kept = {}, {}, {}
    for position, (path, mask) in enumerate(supports_by_path(state.supports).items()):
        if growth_key is None:
            growth = jnp.abs(kernel_of(gradients, path))
        else:
            growth = jax.random.uniform(jax.random.fold_in(growth_key, position), mask.shape)
        kernel = kernel_of(state.params, path)
        masks[path], kept[path] = move_weights(kernel, mask, growth, num_drop[path])
        moved[path] = jnp.sum(masks[path] & ~mask)
    state = with_masks(state, masks, tree_of_kernels(state, kept))
    state = state._replace(step=state.step + 1, batch_stats=batch_stats, opt_state=skip_optimizer_step(state.opt_state))
    return to_compact(state, graphs.counts) if compact else state, metrics | {"loss": loss}, moved


def with_masks(state: TrainState, masks: Mapping[str, jax.Array], kept: Any) -> TrainState:
    """Return a masked state with other masks, by path of the layers.

    Parameters, averages and the optimiser's state are set to zero where ``kept``, booleans in a tree like the
    parameters, is False.
    """

    def zeroed(params: Any) -> Any:
        return jax.tree.map(lambda value, mask: jnp.where(mask, value, 0), params, kept)

    averages = state.averages
    return state._replace(
        params=zeroed(state.params),
        supports=nested({path: {"mask": mask} for path, mask in masks.items()}),
        opt_state=keep_only(state.opt_state, kept),
        averages=averages if averages is None else averages | {"params": zeroed(averages["params"])},
    )


def tree_of_kernels(state: TrainState, by_path: Mapping[str, jax.Array]) -> Any:
    """Return booleans in a tree like the parameters: ``by_path`` for the kernels of these layers, True elsewhere."""
    tree = jax.tree.map(lambda _: jnp.ones((), bool), state.params)
    for path, values in by_path.items():
        tree = _with(tree, (*place_of(path), "kernel"), values)
    return tree


def kernel_of(params: Any, path: str) -> jax.Array:
    """Return the kernel of the layer at a dotted path from parameters, or from their gradients."""
    return _at(params, (*place_of(path), "kernel"))


def move_averages(averages: Any, now: Any, step: jax.Array, decay: float) -> Any:
    """Return exponential moving averages after a step: ``d · average + (1 - d) · now``.

    d rises to ``decay`` as ``(1 + step) / (10 + step)``, so that the first weights are soon forgotten (as in
    TensorFlow's ExponentialMovingAverage).
    """
    d = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda average, value: (d * average + (1 - d) * value).astype(value.dtype), averages, now)


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
    state: TrainState,
    sums: Sums,
    batch: Examples,
    valid: jax.Array,
    *,
    graph: nnx.GraphDef,
    normalization: Normalization,
    sharding: jax.sharding.NamedSharding | None = None,
    random: Any = MappingProxyType({}),
) -> Sums:
    """Add loss and correct answers of the ``valid`` images of a batch to ``sums``.

    ``sharding`` splits a batch among the devices. The arrays of a divided state are collected.
    """
    images = normalize(jnp.asarray(batch.images), normalization)
    if sharding is not None:
        images = jax.lax.with_sharding_constraint(images, sharding)
        whole = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        state = jax.lax.with_sharding_constraint(state, whole)
    logits: Any = merge(graph, state, random)(images)
    labels = jnp.asarray(batch.labels)
    losses = jnp.where(valid, cross_entropy(logits, labels), 0)
    correct = valid & (logits.argmax(-1) == labels)
    return sums._replace(
        loss=sums.loss + losses.sum().astype(jnp.float32),
        correct=sums.correct + correct.sum().astype(jnp.int32),
        images=sums.images + valid.sum().astype(jnp.int32),
    )
