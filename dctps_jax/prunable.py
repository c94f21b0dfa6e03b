"""The prunable layers of a network, and a copy of it in which no weight is masked."""

from collections.abc import Iterator
from typing import Any

from flax import nnx

from dctps_jax.layers import DCTpSConv, DCTpSLinear


def prunable_layers(model: nnx.Module) -> dict[str, DCTpSConv | DCTpSLinear]:
    """Return the prunable layers of ``model`` by dotted path, e.g. ``"layer1.0.conv1"``, in order of definition.

    A layer that occurs in several places goes by the first of them. ``nnx.merge`` sorts attributes by name, so the
    order of definition is lost there; a model that carries it as a static ``layer_order`` (as
    :func:`dctps_jax.models.create_model` sets it) keeps it.
    """
    layers = dict(_layers_below(model, ()))
    first: dict[int, str] = {}
    for path, layer in layers.items():
        first.setdefault(id(layer), path)
    order = getattr(model, "layer_order", ())
    is_known = set(order) <= set(layers) and {id(layers[path]) for path in order} == set(first)
    return {path: layers[path] for path in (order if is_known else first.values())}


def _layers_below(node: Any, path: tuple[str, ...]) -> Iterator[tuple[str, DCTpSConv | DCTpSLinear]]:
    if isinstance(node, DCTpSConv | DCTpSLinear):
        yield ".".join(path), node
    elif isinstance(node, nnx.Module | nnx.List):
        for name, child in vars(node).items():
            yield from _layers_below(child, (*path, name))


def unmasked_copy(model: nnx.Module) -> nnx.Module:
    """Return a copy of ``model`` that trains all weights and computes in the precision of its parameters.

    The copy shares the arrays of ``model`` where a layer has no mask and no support.
    """
    graph, state = nnx.split(model)
    copy = nnx.merge(graph, nnx.to_pure_dict(state))
    for layer in prunable_layers(copy).values():
        layer.set_dense()
    for _, module in nnx.iter_modules(copy):
        if hasattr(module, "dtype"):
            setattr(module, "dtype", None)  # noqa: B010 (the type of modules does not know it)
    return copy
