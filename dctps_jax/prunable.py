"""Find the layers of a network and the prunable ones among them; copy a network without masks."""

import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from flax import nnx

from dctps_jax.arguments import check_has_arrays, check_model, names_of
from dctps_jax.errors import UserError
from dctps_jax.kernels import KernelLayer
from dctps_jax.layer_kinds import kernel_variable
from dctps_jax.stacks import check_variables

# The static attribute of a model that holds the paths of its prunable layers in order of definition.
ORDER = "dctps_layer_order"
NO_LAYERS = (
    "the network has no prunable layers; make them of its layers with convert(model, density=…), or build it with "
    "DCTpSConv, DCTpSLinear and the other layers"
)


def prunable_layers(model: Any) -> dict[str, KernelLayer]:
    """Return the prunable layers of ``model`` by dotted path, e.g. ``"layer1.0.conv1"``, in order of definition.

    A layer that occurs in several places has the path of the first one. ``nnx.merge`` sorts attributes by name, so the
    order of definition is lost there. A model with the static attribute :data:`ORDER` keeps the order.
    :func:`dctps_jax.models.create_model` and :func:`dctps_jax.convert` set it.

    Layers that ``nnx.vmap`` has stacked are one entry (see :attr:`~dctps_jax.kernels.KernelLayer.stack`).

    Raises :class:`~dctps_jax.errors.UserError` for layers that share a kernel, for a stack along another axis than the
    first, and for an object that is not a network.
    """
    check_model(model)
    layers = dict(find_layers(model, lambda node: isinstance(node, KernelLayer)))
    first: dict[int, str] = {}
    for path, layer in layers.items():
        first.setdefault(id(layer), path)
    check_not_tied(layers, {})
    for path in first.values():
        check_variables(path, layers[path])
    order = getattr(model, ORDER, ())
    is_known = set(order) <= set(layers) and {id(layers[path]) for path in order} == set(first)
    return {path: layers[path] for path in (order if is_known else first.values())}


def find_layers(
    node: Any, is_layer: Callable[[Any], bool], path: tuple[Any, ...] = (), above: frozenset[int] = frozenset()
) -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, layer) for every occurrence of a layer in a network, in order of definition.

    Layers are found in modules, in other ``nnx.Pytree`` objects, and in the lists, tuples and dicts that these hold.
    ``above`` are the objects on the way down: an object that holds itself is not entered twice.
    """
    if is_layer(node):
        yield ".".join(map(str, path)), node
    elif id(node) not in above:
        for name, child in _children(node).items():
            yield from find_layers(child, is_layer, (*path, name), above | {id(node)})


def replace_layers(node: Any, new: Mapping[int, Any], above: frozenset[int] = frozenset()) -> Any:
    """Return ``node`` with a layer replaced if its ``id`` is a key of ``new``. Modules change in place."""
    if id(node) in new:
        return new[id(node)]
    if id(node) in above:
        return node
    children = {name: replace_layers(child, new, above | {id(node)}) for name, child in _children(node).items()}
    if isinstance(node, tuple):
        fields = getattr(node, "_make", tuple)  # a named tuple has a constructor of its own
        return fields(children.values()) if any(map(operator.is_not, children.values(), node)) else node
    for name, child in children.items():
        if isinstance(node, list | dict):
            node[name] = child
        elif child is not vars(node)[name]:
            setattr(node, name, child if isinstance(child, nnx.Pytree) else nnx.data(child))
    return node


def _children(node: Any) -> Mapping[Any, Any]:
    if isinstance(node, nnx.Variable):
        return {}
    if isinstance(node, nnx.Pytree):
        return {name: child for name, child in vars(node).items() if not name.startswith("_pytree__")}
    if isinstance(node, list | tuple):
        return dict(enumerate(node))
    return node if isinstance(node, dict) else {}


def check_not_tied(layers: Mapping[str, Any], others: Mapping[str, Any]) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` if a layer's kernel is also a variable of another module."""
    owners: dict[int, list[tuple[str, Any]]] = defaultdict(list)
    for path, module in (*layers.items(), *others.items()):
        for variable in variables_in([module]):
            owners[id(variable)].append((path, module))
    for path, layer in layers.items():
        for other, module in owners[id(kernel_variable(layer))]:
            if module is not layer:
                raise UserError(
                    f"{names_of([path])} and {names_of([other])} share a kernel, and a choice of weights would hold "
                    "for one of them only; use one module in both places, exclude both, or give each its own kernel"
                )


def variables_in(modules: Iterable[Any]) -> list[nnx.Variable]:
    """Return the variables that are attributes of ``modules``."""
    return [value for module in modules for value in vars(module).values() if isinstance(value, nnx.Variable)]


def check_not_normalized(model: Any, layers: Mapping[str, Any]) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` if a layer is in a wrapper that normalises its kernel.

    ``nnx.SpectralNorm`` and ``nnx.WeightNorm`` normalise the stored array. That is S alone in a layer with a fixed part
    (an offset or a frozen kernel), and a list of values in a compact layer. Ask for such layers only.
    """
    paths = {id(layer): path for path, layer in layers.items()}
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.SpectralNorm | nnx.WeightNorm):
            for _, layer in find_layers(module.layer_instance, lambda node: id(node) in paths):
                raise UserError(
                    f"{paths[id(layer)]} is in an nnx.{type(module).__name__}, which normalises the array that a layer "
                    "stores; a compact layer and a layer with an offset store no whole kernel: use offset=None and "
                    'form="masked", or leave this layer out'
                )


def unmasked_copy(model: nnx.Module) -> nnx.Module:
    """Return a copy of ``model`` that trains all weights and computes in the precision of its parameters.

    The copy shares the arrays of layers without mask and support.
    """
    check_model(model)
    check_has_arrays("unmasked_copy", model)
    graph, state = nnx.split(model)
    copy = nnx.merge(graph, nnx.to_pure_dict(state))
    for layer in prunable_layers(copy).values():
        layer.set_dense()
    for _, module in nnx.iter_modules(copy):
        if "dtype" in vars(module):
            setattr(module, "dtype", None)  # noqa: B010 (the type of modules does not know it)
    return copy
