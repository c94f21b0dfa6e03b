"""The state of a training run, as plain nested dicts of arrays, and the network without its arrays."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from dctps_jax.kernels import Mask, Support
from dctps_jax.prunable import prunable_layers, unmasked_copy

# The axes of a mesh along which a batch is divided, or None.
AxisName = str | tuple[str, ...] | None


class TrainState(NamedTuple):
    """The arrays that a training step advances.

    ``supports`` say which weights are trained: a mask or the positions of each layer that is not dense. ``frozen``
    holds all other arrays: each α that is not trained, and frozen kernels W₀. ``averages`` are moving averages of
    ``params`` and ``batch_stats``, or None.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    supports: Any
    frozen: Any
    opt_state: Any
    averages: Any = None

    def averaged(self) -> "TrainState":
        """Return the state with the averages in place of the parameters and statistics."""
        return self._replace(params=self.averages["params"], batch_stats=self.averages["batch_stats"])


class Graphs(NamedTuple):
    """A network without its arrays: for training, for evaluation, and for training all weights (dense gradients).

    ``shapes`` and ``counts`` are kernel shapes and numbers of trained weights of the layers with a support, by path in
    the state's order. ``random`` holds the streams of a network that draws random numbers when it is called, e.g. for
    dropout. Their state is not advanced, see :func:`random_at`.
    """

    train: nnx.GraphDef
    eval: nnx.GraphDef
    dense: nnx.GraphDef
    shapes: dict[str, tuple[int, ...]]
    counts: dict[str, int]
    random: Any


def random_at(random: Any, step: jax.Array, axis_name: AxisName = None) -> Any:
    """Return the streams of random numbers for a step; the numbers differ between steps and between devices.

    They depend on the step only, so that a resumed run draws the same numbers.
    """

    def fold(leaf: jax.Array) -> jax.Array:
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        key = jax.random.fold_in(leaf, step)
        return key if axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))

    return jax.tree.map(fold, random)


def _copied(state: "TrainState") -> "TrainState":
    return jax.tree.map(jnp.copy, state)


def create_state(
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    axis_name: AxisName = None,
    has_averages: bool = False,
    put: Callable[[TrainState], TrainState] = _copied,
) -> tuple[Graphs, TrainState]:
    """Split ``model`` into its graphs and an initial state. The state shares no buffers with the model.

    With an ``axis_name`` BatchNorm in training also averages over these axes of the devices. ``put`` copies a state to
    its devices. The optimiser's arrays are made there: if they are divided, no device has to hold them all.
    """
    model.eval()
    eval_graph = nnx.graphdef(model)
    model.train()
    _, *parts = nnx.split(model, nnx.Param, nnx.BatchStat, (Mask, Support), nnx.RngState, ...)
    params, batch_stats, supports, random, frozen = map(nnx.to_pure_dict, parts)
    random = jax.tree.map(jnp.copy, random)
    averages = {"params": params, "batch_stats": batch_stats} if has_averages else None
    # Copies: a donated state would otherwise delete the model's own arrays.
    state = put(TrainState(jnp.zeros((), jnp.int32), params, batch_stats, supports, frozen, None, averages))
    state = put(state._replace(opt_state=optimizer.init(state.params)))
    layers = prunable_layers(model)
    shapes = {path: layers[path].kernel_shape for path in supports_by_path(supports)}
    counts = {
        path: int(support.sum()) if support.dtype == bool else support.size
        for path, support in supports_by_path(supports).items()
    }
    # Abstract: a compact layer must not become dense here.
    train_graph, dense_graph = (
        nnx.graphdef(nnx.eval_shape(lambda copy=copy: _averaging_over(copy(model), axis_name)))
        for copy in (nnx.clone, unmasked_copy)
    )
    return Graphs(train_graph, eval_graph, dense_graph, shapes, counts, random), state


def _averaging_over(model: nnx.Module, axis_name: Any) -> nnx.Module:
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.BatchNorm):
            module.axis_name = axis_name
    return model


def merge(graph: nnx.GraphDef, state: TrainState, random: Any = MappingProxyType({})) -> nnx.Module:
    """Put a network's graph, the arrays of a state and streams of random numbers together again."""
    return nnx.merge(graph, state.params, state.batch_stats, state.supports, state.frozen, dict(random))


def supports_by_path(supports: Any) -> dict[str, jax.Array]:
    """Return the masks or positions of a state by dotted path of their layers, in the state's order."""
    leaves = jax.tree_util.tree_leaves_with_path(supports)
    return {".".join(str(entry.key) for entry in path[:-1]): support for path, support in leaves}


def place_of(path: str) -> tuple[str | int, ...]:
    """Return the keys of a dotted path in a state, where positions in lists are integers."""
    return tuple(int(name) if name.isdigit() else name for name in path.split("."))


def nested(by_path: Mapping[str, Any]) -> Any:
    """Return values by dotted path as the nested dicts of a state."""
    tree: dict = {}
    for path, value in by_path.items():
        *above, last = place_of(path)
        node = tree
        for name in above:
            node = node.setdefault(name, {})
        node[last] = value
    return tree
