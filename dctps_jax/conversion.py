"""Turn the layers of any NNX network into DCT plus Sparse layers."""

import fnmatch
import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dctps_jax.errors import UserError
from dctps_jax.kernels import add_metadata, metadata_of_values, placed_like, values_at
from dctps_jax.layers import DCTpSConv, DCTpSLinear
from dctps_jax.offsets import Offset
from dctps_jax.prunable import (
    ORDER,
    check_not_normalized,
    check_not_tied,
    check_stack,
    find_layers,
    prunable_layers,
    replace_layers,
)
from dctps_jax.pruning import ALLOCATIONS, allocate, apply_masks, prune, random_supports, trains_all_weights
from dctps_jax.seeds import as_key

LAYERS = (DCTpSConv, DCTpSLinear)


def convert(
    model: nnx.Module,
    *,
    density: float,
    method: str = "epl",
    exclude: Iterable[str] = (),
    offset: str | Offset | None = "dct",
    form: Literal["compact", "masked"] = "compact",
    key: jax.Array | int | None = None,
    alpha_init: float = 1.0,
    alpha_trainable: bool = True,
    dense_layers: Iterable[str] = (),
    layer_densities: Mapping[str, float] | Iterable[tuple[str, float]] = (),
    **options: Any,
) -> nnx.Module:
    """Return a copy of ``model`` in which every ``nnx.Conv`` and ``nnx.Linear`` is a layer with ``K = α·D + M⊙S``.

    ``density`` is that of all converted kernels together, divided among them by ``method``, at random positions from
    ``key`` (a key of JAX or a seed, by default 0), or chosen by a score, whose ``batch`` and other ``options`` are
    those of :func:`dctps_jax.pruning.prune`. Layers whose dotted path matches a pattern of ``exclude`` stay as they
    are, e.g. ``("head", "blocks.*.norm")``; so do subclasses and other layers with kernels, as ``nnx.LinearGeneral``.
    With an offset S starts at zero; with ``offset=None`` at the kept weights of the model. Biases are kept, and the
    metadata of kernels and biases (see :meth:`~dctps_jax.kernels.KernelLayer.set_support`). A layer that occurs twice
    stays one. Layers that ``nnx.vmap`` has stacked stay stacked: each has an α and weights of its own, all have equally
    many.

    Raises :class:`~dctps_jax.errors.UserError` where there is nothing to convert, for a pattern that matches no layer,
    for layers that have a mask, and for a stack along another axis than the first; besides those of ``prune``.
    """
    key = as_key(0 if key is None else key)
    is_random = method in ALLOCATIONS
    if is_random and options:
        raise UserError(f"{method} has no option {next(iter(options))!r}; random methods have none")
    # Shapes and counts. The copy has lost the order of the layers, so it comes from the model.
    copy: Any = nnx.clone(model)
    in_copy = dict(find_layers(copy, _is_layer))
    first_paths = _first_paths(model, exclude)
    layers = {path: in_copy[path] for path in dict.fromkeys(first_paths.values())}
    if all(isinstance(layer, LAYERS) for layer in layers.values()):
        raise UserError("the model has no nnx.Conv or nnx.Linear to convert")
    stacks = {path: _stack(path, layer) for path, layer in layers.items()}
    shapes = {path: _kernel_shape(layer) for path, layer in layers.items()}
    fixed_layers: dict[str, Any] = {"dense_layers": dense_layers, "layer_densities": layer_densities}
    is_dense = trains_all_weights(method, density, layer_densities)
    if form == "compact" and not is_dense:
        check_not_normalized(copy, layers)
    # Random supports, without dense kernels.
    supports: dict[str, np.ndarray] = {}
    if is_random and form == "compact" and not is_dense:
        counts = allocate(shapes, density, method, **fixed_layers, stacks=stacks)
        supports = random_supports(key, shapes, counts, stacks)
    # The layers with their supports.
    alpha = {"offset": offset, "alpha_init": alpha_init, "alpha_trainable": alpha_trainable}
    converted: dict[int, Any] = {}
    for path, layer in layers.items():
        if not isinstance(layer, LAYERS):
            converted[id(layer)] = _converted(layer, stacks[path], supports.get(path), **alpha)
        elif supports:
            layer.set_support(supports[path])
    copy = replace_layers(copy, converted)
    setattr(copy, ORDER, tuple(layers))
    if not supports and not is_dense:
        apply_masks(copy, prune(copy, method, density, key=key, **fixed_layers, **options), form)
    return copy


def to_plain(model: nnx.Module) -> Any:
    """Return a copy of ``model`` with ``nnx.Conv`` and ``nnx.Linear`` in place of the DCT plus Sparse layers.

    Their kernels are K = α·D + M⊙S, written out, so that the copy computes the same, and all weights of it are trained.
    What knows the layers of NNX knows the copy.
    """
    copy: Any = nnx.clone(model)
    copy = replace_layers(copy, {id(layer): _plain(layer) for layer in prunable_layers(copy).values()})
    if hasattr(copy, ORDER):
        delattr(copy, ORDER)
    return copy


def _plain(layer: DCTpSConv | DCTpSLinear) -> nnx.Conv | nnx.Linear:
    layer_type = nnx.Conv if isinstance(layer, DCTpSConv) else nnx.Linear
    plain = layer_type(**_same_arguments(layer, layer_type), rngs=nnx.Rngs(0))
    plain.kernel.set_value(layer.effective_kernel())
    add_metadata(plain.kernel, layer.kernel.get_metadata())
    if plain.bias is not None and layer.bias is not None:
        plain.bias.set_value(layer.bias[...])
        add_metadata(plain.bias, layer.bias.get_metadata())
    return plain


def _same_arguments(layer: Any, layer_type: type) -> dict[str, Any]:
    """Return every argument of ``layer_type`` that a layer keeps as an attribute of its name, but for its arrays."""
    parameters = inspect.signature(layer_type.__init__).parameters
    names = parameters.keys() & vars(layer).keys() - {"mask", "kernel_init", "bias_init"}
    return {name: getattr(layer, name) for name in names}


class Row(NamedTuple):
    """What became of the parameters of one module: how many it had, how many are trained, and why."""

    path: str
    kind: str
    parameters: int
    trained: int
    outcome: str


class Report(NamedTuple):
    """What a conversion changed, what it left, and why. ``str(report)`` is a table."""

    rows: tuple[Row, ...]

    @property
    def density(self) -> float:
        """Trained parameters ÷ all parameters of the network; biases, normalisation and α are among both."""
        return sum(row.trained for row in self.rows) / sum(row.parameters for row in self.rows)

    def __str__(self) -> str:
        cells = [(row.path or "(the network)", row.kind, f"{row.trained:,} of {row.parameters:,}") for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            f"{path:{widths[0]}}  {kind:{widths[1]}}  {numbers:>{widths[2]}}  {row.outcome}"
            for (path, kind, numbers), row in zip(cells, self.rows, strict=True)
        ]
        trained, parameters = (sum(getattr(row, name) for row in self.rows) for name in ("trained", "parameters"))
        lines.append(f"{trained:,} of {parameters:,} parameters are trained, {100 * self.density:.4g} %")
        return "\n".join(lines)


def conversion_report(model: nnx.Module) -> Report:
    """Return what :func:`convert` made of each module with parameters: converted, or left, and why.

    The α of a layer is one of its parameters, and trained where it is trainable.
    """
    parameters: dict[tuple[Any, ...], dict[str, int]] = {}
    for place, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        parameters.setdefault(tuple(place[:-1]), {})[str(place[-1])] = variable[...].size
    modules = dict(nnx.iter_modules(model))
    return Report(tuple(_row(place, modules.get(place), sizes) for place, sizes in parameters.items()))


def _row(place: tuple[Any, ...], module: Any, sizes: dict[str, int]) -> Row:
    path, total = ".".join(map(str, place)), sum(sizes.values())
    kind = type(module).__name__
    if isinstance(module, LAYERS):
        weights = math.prod((*module.stack, *module.kernel_shape))
        nnz = weights if module.mask is None else int(module.mask[...].sum())
        nnz = nnz if module.support is None else module.support[...].size
        others = total - sizes["kernel"]
        kernel = "K = S" if module.offset is None else "K = α·D + M⊙S"
        return Row(path, kind, weights + others, nnz + others, f"{kernel}, {nnz:,} weights")
    if type(module) in (nnx.Conv, nnx.Linear):
        outcome = "left: excluded"
    elif isinstance(module, nnx.Conv | nnx.Linear):
        outcome = "left: a subclass may compute something else"
    elif "kernel" in sizes:
        outcome = "left: no nnx.Conv or nnx.Linear"
    else:
        outcome = "left: it has no kernel"
    return Row(path, kind, total, total, outcome)


def _first_paths(model: nnx.Module, exclude: Iterable[str]) -> dict[str, str]:
    """Return the paths of all layers that are allocated, each with the first path of the same layer.

    A layer may occur in several places. Layers that are to be converted are left out where ``exclude`` matches.
    """
    layers = dict(find_layers(model, _is_layer))
    convertible = [path for path, layer in layers.items() if not isinstance(layer, LAYERS)]
    excluded: set[str] = set()
    for pattern in [exclude] if isinstance(exclude, str) else exclude:
        matching = fnmatch.filter(convertible, pattern)
        if not matching:
            raise UserError(f"exclude: no layer matches {pattern!r}; the layers are: {', '.join(convertible)}")
        excluded.update(matching)
    others = {".".join(map(str, path)): module for path, module in nnx.iter_modules(model)}
    check_not_tied({path: layers[path] for path in layers if path not in excluded}, others)
    by_layer: dict[int, str] = {}
    paths = [path for path in (*getattr(model, ORDER, ()), *layers) if path not in excluded]
    return {path: by_layer.setdefault(id(layers[path]), path) for path in paths}


def _kernel_shape(layer: Any) -> tuple[int, ...]:
    """Return the kernel shape of one layer."""
    if isinstance(layer, LAYERS):
        return layer.kernel_shape
    if isinstance(layer, nnx.Conv):
        return (*layer.kernel_size, layer.in_features // layer.feature_group_count, layer.out_features)
    return (layer.in_features, layer.out_features)


def _stack(path: str, layer: Any) -> tuple[int, ...]:
    """Return the sizes of the axes in which ``nnx.vmap`` has stacked a layer, ``()`` for one layer.

    A layer that cannot be converted raises :class:`~dctps_jax.errors.UserError`.
    """
    if isinstance(layer, nnx.Conv) and layer.mask is not None:
        raise UserError(f"{path} has a mask of its own; exclude it, or build it without")
    if isinstance(layer, LAYERS):
        return layer.stack
    own = {"kernel": _kernel_shape(layer), "bias": (layer.out_features,)}
    found = {name: getattr(layer, name).get_value().shape for name in own if getattr(layer, name) is not None}
    stack = found["kernel"][: len(found["kernel"]) - len(own["kernel"])]
    check_stack(path, stack, {name: (shape, own[name]) for name, shape in found.items()})
    return stack


def _converted(
    layer: Any, stack: tuple[int, ...], support: np.ndarray | None, **settings: Any
) -> DCTpSConv | DCTpSLinear:
    """Return the DCT plus Sparse layer for an ``nnx.Conv`` or ``nnx.Linear``, compact if there is a support."""
    layer_type = DCTpSConv if isinstance(layer, nnx.Conv) else DCTpSLinear
    same = _same_arguments(layer, layer_type)
    of_one_layer = None if support is None else support[(0,) * len(stack)]
    new = layer_type(**same, **settings, support=of_one_layer, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))
    for variable in (new.kernel, new.support, new.alpha):
        if stack and variable is not None:
            variable.set_value(jnp.broadcast_to(variable[...], (*stack, *variable[...].shape)))
    kernel, metadata = layer.kernel[...], layer.kernel.get_metadata()
    if support is not None:
        new.support.set_value(jnp.asarray(support, jnp.int32))
        kernel = values_at(kernel, new.support[...])
        metadata = metadata_of_values(metadata, len(stack))
    new.kernel.set_value(placed_like(new.kernel[...], kernel) if new.offset else kernel)
    add_metadata(new.kernel, metadata)
    if new.bias is not None and layer.bias is not None:
        new.bias.set_value(layer.bias[...])
        add_metadata(new.bias, layer.bias.get_metadata())
    return new


def _is_layer(node: Any) -> bool:
    """Return whether a layer is to be converted, or is a DCT plus Sparse layer already."""
    return type(node) in (nnx.Conv, nnx.Linear) or isinstance(node, LAYERS)
