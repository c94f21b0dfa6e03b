"""The loss of a batch and its gradients, on one device or summed over several."""

from types import MappingProxyType
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from dctps_jax.losses import cross_entropy
from dctps_jax.training.placement import DATA, SHARDS, state_spec
from dctps_jax.training.state import TrainState, random_at

Mesh = jax.sharding.Mesh | jax.sharding.AbstractMesh


def value_and_gradients(
    graph: nnx.GraphDef,
    state: TrainState,
    supports: Any,
    batch: tuple[jax.Array, jax.Array],
    mesh: Mesh | None,
    random: Any = MappingProxyType({}),
    loss_scale: float = 1.0,
) -> Any:
    """Return ``((mean loss, ({"correct": count}, new batch_stats)), gradients)`` of a batch.

    ``supports`` are the supports of the state, or ``{}`` for the ``dense`` graph, whose gradients are for all weights.
    ``random`` are the streams of the network's random numbers, see :func:`dctps_jax.training.state.random_at`. The loss
    is multiplied by ``loss_scale`` before it is differentiated, so that small gradients in float16 are not lost.
    With a mesh of several devices each device takes its part of the batch. Only the gradients of the parameters in
    their stored form, and BatchNorm's moments, cross devices. Automatic partitioning would sum the gradients of whole
    kernels before a compact layer picks its positions. Divided arrays of the state are collected for the network; their
    gradients are divided in the same way, see :func:`dctps_jax.training.placement.state_spec`.
    """

    def local(params: Any, others: Any, batch: tuple[jax.Array, jax.Array], specs: Any = None) -> Any:
        loss_of = _loss_of(graph, others, batch, loss_scale)

        def loss_of_parts(params: Any) -> Any:
            # For an array that is collected here, JAX sums the gradient over the devices that share it, each device its
            # part.
            return loss_of(params if specs is None else _collected(params, specs))

        (loss, rest), gradients = jax.value_and_grad(loss_of_parts, has_aux=True)(params)
        loss, gradients = jax.tree.map(lambda scaled: scaled / loss_scale, (loss, gradients))
        return (loss, rest), gradients

    chex.assert_rank(batch[0], 4)
    chex.assert_equal_shape_prefix(batch, 1)
    others = (state.batch_stats, supports, state.frozen)
    if mesh is None or mesh.size == 1:
        return local(state.params, (*others, random_at(dict(random), state.step)), batch)
    axes = mesh.axis_names
    specs, specs_of_others = jax.tree.map(lambda leaf: state_spec(leaf.shape, mesh), (state.params, others))

    def on_each_device(params: Any, others: Any, step: jax.Array, batch: tuple[jax.Array, jax.Array]) -> Any:
        # As values of this device alone: otherwise every use of a parameter would sum its gradient over the devices.
        params = jax.tree.map(
            lambda leaf, spec: jax.lax.pcast(leaf, (DATA,) if SHARDS in spec else axes, to="varying"), params, specs
        )
        others = *_collected(others, specs_of_others), random_at(dict(random), step, axes)
        (loss, (metrics, batch_stats)), gradients = local(params, others, batch, specs)
        # Numbers of one dtype cross devices in one exchange: the counts, which are small, go with the gradients.
        counts = jax.tree.map(lambda count: count.astype(loss.dtype), metrics)
        (loss, counts), gradients = _summed((loss, counts), gradients, specs, axes)
        loss, gradients = jax.tree.map(lambda total: total / mesh.size, (loss, gradients))
        metrics = jax.tree.map(lambda total, count: total.astype(count.dtype), counts, metrics)
        return (loss, (metrics, batch_stats)), gradients

    replicated = PartitionSpec()
    return jax.shard_map(
        on_each_device,
        mesh=mesh,
        in_specs=(specs, specs_of_others, replicated, PartitionSpec(axes)),
        out_specs=((replicated, replicated), specs),
    )(state.params, others, state.step, batch)


def _collected(tree: Any, specs: Any) -> Any:
    """Return the arrays with those that ``specs`` divide among devices collected."""

    def collect(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
        return jax.lax.all_gather(leaf, SHARDS, axis=spec.index(SHARDS), tiled=True) if SHARDS in spec else leaf

    return jax.tree.map(collect, tree, specs)


def _summed(numbers: Any, gradients: Any, specs: Any, axes: tuple[str, ...]) -> Any:
    """Return ``(numbers, gradients)`` summed over all devices, in one exchange except for divided gradients.

    Divided gradients are already sums over the devices that share the array.
    """
    leaves, structure = jax.tree.flatten(gradients)
    is_divided = [SHARDS in spec for spec in jax.tree.leaves(specs)]
    whole = [leaf for leaf, divided in zip(leaves, is_divided, strict=True) if not divided]
    parts = [leaf for leaf, divided in zip(leaves, is_divided, strict=True) if divided]
    numbers, whole = jax.lax.psum((numbers, whole), axes)
    parts = jax.lax.psum(parts, DATA)
    summed = [(parts if divided else whole).pop(0) for divided in is_divided]
    return numbers, jax.tree.unflatten(structure, summed)


def _loss_of(
    graph: nnx.GraphDef, others: tuple[Any, ...], batch: tuple[jax.Array, jax.Array], loss_scale: float
) -> Any:
    """Return ``params → (loss_scale · mean loss, ({"correct": count}, new batch_stats))`` of a batch.

    ``others`` are the other arrays of the network, in any order.
    """
    images, labels = batch

    def loss_fn(params: Any) -> Any:
        model = nnx.merge(graph, params, *others)
        logits = model(images)
        correct = jnp.sum(logits.argmax(-1) == (labels if labels.ndim == 1 else labels.argmax(-1)))
        batch_stats = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
        return loss_scale * cross_entropy(logits, labels).mean(), ({"correct": correct}, batch_stats)

    return loss_fn
