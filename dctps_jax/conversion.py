"""Turn the layers of any NNX network into DCT plus Sparse layers."""

import fnmatch
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dctps_jax.arguments import check_choice, check_flag, check_model, check_number, names_of, pairs, patterns
from dctps_jax.errors import UserError
from dctps_jax.frozen import check_all_plain, freeze_all_but, unfreeze
from dctps_jax.kernels import KernelLayer
from dctps_jax.layer_kinds import KINDS, DCTpSEinsum, has_counterpart, kernel_variable, shapes_of
from dctps_jax.offsets import Offset
from dctps_jax.partitioning import add_metadata, metadata_of_values, placed_like
from dctps_jax.prunable import (
    ORDER,
    check_not_normalized,
    check_not_tied,
    find_layers,
    prunable_layers,
    replace_layers,
    variables_in,
)
from dctps_jax.pruning import (
    ALLOCATIONS,
    FORMS,
    allocate,
    apply_masks,
    check_density,
    check_method,
    parse_pattern,
    prune,
    random_supports,
    trains_all_weights,
)
from dctps_jax.seeds import as_key
from dctps_jax.stacks import check_stack, of_each
from dctps_jax.supports import values_at

CONVERTIBLE = ", ".join(f"nnx.{kind.__name__}" for kind in KINDS if kind is not nnx.Embed)


def convert(
    model: nnx.Module,
    *,
    density: float,
    method: str = "epl",
    exclude: Iterable[str] = (),
    offset: str | Offset | Literal["frozen"] | None = "dct",
    form: Literal["compact", "masked"] = "compact",
    key: jax.Array | int | None = None,
    alpha_init: float = 1.0,
    alpha_trainable: bool = True,
    embeddings: bool = False,
    dense_layers: Iterable[str] = (),
    layer_densities: Mapping[str, float] | Iterable[tuple[str, float]] = (),
    pattern: str = "",
    **options: Any,
) -> nnx.Module:
    """Return a copy of ``model`` in which every layer with a kernel is one with ``K = α·D + M⊙S``.

    The layers are ``nnx.Conv``, ``nnx.Linear``, ``nnx.LinearGeneral`` (with those of ``nnx.MultiHeadAttention``),
    ``nnx.Einsum`` and ``nnx.ConvTranspose``; with ``embeddings`` also ``nnx.Embed``. A kernel with several axes of
    inputs or outputs becomes a matrix, inputs × outputs, and D and the mask are of its shape.

    ``density`` is that of all converted kernels together, divided among them by ``method``, at random positions from
    ``key`` (a key of JAX or a seed, by default 0), or chosen by a score, whose ``batch`` and other ``options`` are
    those of :func:`dctps_jax.pruning.prune`, which also has ``dense_layers``, ``layer_densities`` and ``pattern``.
    Layers whose dotted path matches a pattern of ``exclude`` stay as they are, e.g. ``("head", "blocks.0.*")``; so
    do subclasses, what is in an ``nnx.LoRA``, and an ``nnx.Einsum`` that is no product with a matrix. With an offset S
    starts at zero; with ``offset=None`` at the kept weights of the model. Biases are kept, and the metadata of kernels
    and biases (see :meth:`~dctps_jax.kernels.KernelLayer.set_support`). A layer that occurs twice stays one. Layers
    that ``nnx.vmap`` has stacked stay stacked: each has an α and weights of its own, all have equally many.

    ``offset="frozen"`` is for fine-tuning: K = W₀ + M⊙S. The model's own kernel W₀ stays as it is, S starts at zero.
    All other parameters are frozen. Those of excluded layers and of LoRA stay trainable.
    :class:`~dctps_jax.kernels.Frozen` variables are no ``nnx.Param``. See :func:`~dctps_jax.export_delta`.

    Raises :class:`~dctps_jax.errors.UserError` where there is nothing to convert, for a pattern that matches no layer,
    for layers that have a mask, for a stack along another axis than the first, and for stacks and DCT plus Sparse
    layers in a network that is to be frozen; besides those of ``prune``.
    """
    key = as_key(0 if key is None else key)
    check_model(model)
    check_density(density, "density")
    check_choice("form", form, FORMS)
    check_number("alpha_init", alpha_init)
    check_flag("alpha_trainable", alpha_trainable)
    check_flag("embeddings", embeddings)
    check_method(method, options)
    parse_pattern(pattern, density)
    is_random = method in ALLOCATIONS
    dense_layers, layer_densities = patterns("dense_layers", dense_layers), pairs("layer_densities", layer_densities)
    # Shapes and counts. The copy has lost the order of the layers, so it comes from the model.
    copy: Any = nnx.clone(model)
    in_copy = dict(find_layers(copy, _is_layer))
    allocatable = _allocatable(model, embeddings)
    first_paths = _first_paths(model, allocatable, exclude)
    layers = {path: in_copy[path] for path in dict.fromkeys(first_paths.values())}
    is_frozen = isinstance(offset, str) and offset == "frozen"
    if is_frozen and (alpha_init != 1.0 or not alpha_trainable):
        raise UserError('offset is "frozen", K = W₀ + S, which has no α; leave out alpha_init and alpha_trainable')
    if is_frozen:
        check_all_plain(layers)
    if all(isinstance(layer, KernelLayer) for layer in layers.values()):
        raise UserError(
            f"the model has no layer to convert; convert knows {CONVERTIBLE} (nnx.Embed with embeddings=True), and "
            "leaves what is excluded or converted already"
        )
    stacks = {path: stack for path, layer in layers.items() if (stack := _stack(path, layer))}
    shapes = {path: _kernel_shape(layer) for path, layer in layers.items()}
    if is_frozen and stacks:
        raise UserError(
            f"nnx.vmap has stacked {names_of(stacks)}, and offset is 'frozen', which is for layers that are not "
            "stacked; exclude them, or keep them in an nnx.List"
        )
    if is_frozen:
        to_convert = {id(layer) for layer in layers.values()}
        excluded = [in_copy[path] for path in allocatable if id(in_copy[path]) not in to_convert]
        freeze_all_but(copy, [*map(kernel_variable, layers.values()), *variables_in(excluded)])
    fixed_layers: dict[str, Any] = {"dense_layers": dense_layers, "layer_densities": layer_densities}
    is_pruned = any(isinstance(layer, KernelLayer) and not layer.is_dense for layer in layers.values())
    is_dense = trains_all_weights(method, density, layer_densities) and not is_pruned
    if is_dense:
        allocate(shapes, density, "uniform", dense_layers=dense_layers, stacks=stacks)  # it checks dense_layers
    if form == "compact" and not is_dense:
        check_not_normalized(copy, layers)
    # Random supports, without dense kernels. Where layers have masks already, prune chooses within them.
    supports: dict[str, np.ndarray] = {}
    if is_random and form == "compact" and not (is_dense or is_pruned or pattern):
        counts = allocate(shapes, density, method, **fixed_layers, stacks=stacks)
        supports = random_supports(key, shapes, counts, stacks)
    # The layers with their supports.
    alpha = {"offset": None if is_frozen else offset, "alpha_init": alpha_init, "alpha_trainable": alpha_trainable}
    converted: dict[int, Any] = {}
    for path, layer in layers.items():
        if not isinstance(layer, KernelLayer):
            converted[id(layer)] = _converted(layer, stacks.get(path, ()), supports.get(path), is_frozen, **alpha)
        elif supports:
            layer.set_support(supports[path])
    copy = replace_layers(copy, converted)
    setattr(copy, ORDER, tuple(layers))
    if not supports and not is_dense:
        apply_masks(copy, prune(copy, method, density, key=key, pattern=pattern, **fixed_layers, **options), form)
    return copy


def to_plain(model: nnx.Module) -> Any:
    """Return a copy of ``model`` with the layers of NNX, ``nnx.Conv`` and others, in place of DCT plus Sparse layers.

    Their kernels are K = α·D + M⊙S, written out, so that the copy computes the same, and all weights of it are trained.
    Programs that know only the layers of NNX work with the copy.
    """
    check_model(model)
    copy: Any = nnx.clone(model)
    unfreeze(copy)
    copy = replace_layers(copy, {id(layer): _plain(layer) for layer in prunable_layers(copy).values()})
    if hasattr(copy, ORDER):
        delattr(copy, ORDER)
    return copy


def _plain(layer: KernelLayer) -> Any:
    layer_type: Any = next(plain for plain, own in KINDS.items() if isinstance(layer, own))
    arguments = _same_arguments(layer, layer_type)
    if isinstance(layer, DCTpSEinsum):
        arguments["kernel_shape"] = layer.contraction.shape
    plain: Any = layer_type(**arguments, **_zeros_for(layer_type), rngs=nnx.Rngs(0))
    kernel = kernel_variable(plain)
    kernel.set_value(of_each(layer.stack, layer.plain_kernel)(layer.effective_kernel()))
    add_metadata(kernel, layer.kernel.get_metadata())
    if layer.bias is not None:
        plain.bias = nnx.data(layer.bias)  # the variable itself, which other modules may hold, too
    return plain


def _zeros_for(layer_type: type) -> dict[str, Any]:
    """Return the argument of a layer that starts its kernel, which is set afterwards, at zero."""
    return {"embedding_init" if layer_type is nnx.Embed else "kernel_init": nnx.initializers.zeros}


def _same_arguments(layer: Any, layer_type: type) -> dict[str, Any]:
    """Return every argument of ``layer_type`` that a layer keeps as an attribute of its name, but for its arrays."""
    parameters = inspect.signature(layer_type.__init__).parameters
    names = parameters.keys() & vars(layer).keys() - {"mask", "kernel_init", "bias_init"}
    return {name: getattr(layer, name) for name in names}


def _allocatable(model: nnx.Module, embeddings: bool) -> dict[str, Any]:
    """Return all layers that weights can be allocated to: none in ``nnx.LoRA``, embeddings only if asked for."""
    in_lora = {
        id(layer)
        for _, lora in find_layers(model, lambda node: isinstance(node, nnx.LoRA))
        for _, layer in find_layers(lora.base_module, has_counterpart)
    }
    return {
        path: layer
        for path, layer in find_layers(model, _is_layer)
        if id(layer) not in in_lora and (embeddings or not isinstance(layer, nnx.Embed))
    }


def _first_paths(model: nnx.Module, layers: Mapping[str, Any], exclude: Iterable[str]) -> dict[str, str]:
    """Return the paths of all layers that are allocated, each with the first path of the same layer.

    A layer may occur in several places. Layers that are to be converted are left out where ``exclude`` matches any of
    their paths.
    """
    convertible = [path for path, layer in layers.items() if not isinstance(layer, KernelLayer)]
    excluded_layers: set[int] = set()  # by identity: a layer may have several paths, and the pattern matches one
    for pattern in patterns("exclude", exclude):
        matching = fnmatch.filter(convertible, pattern)
        if not matching:
            raise UserError(f"exclude: no layer matches {pattern!r}; the layers are: {', '.join(convertible)}")
        excluded_layers.update(id(layers[path]) for path in matching)
    excluded = {path for path in convertible if id(layers[path]) in excluded_layers}
    others = {".".join(map(str, path)): module for path, module in nnx.iter_modules(model)}
    check_not_tied({path: layers[path] for path in layers if path not in excluded}, others)
    by_layer: dict[int, str] = {}
    paths = [path for path in (*getattr(model, ORDER, ()), *layers) if path not in excluded]
    return {path: by_layer.setdefault(id(layers[path]), path) for path in paths}


def _kernel_shape(layer: Any) -> tuple[int, ...]:
    """Return the kernel shape of the counterpart of one layer."""
    return layer.kernel_shape if isinstance(layer, KernelLayer) else shapes_of(layer)[0]


def _stack(path: str, layer: Any) -> tuple[int, ...]:
    """Return the sizes of the axes in which ``nnx.vmap`` has stacked a layer, ``()`` for one layer.

    A layer that cannot be converted raises :class:`~dctps_jax.errors.UserError`.
    """
    if isinstance(layer, KernelLayer):
        return layer.stack
    if isinstance(layer, nnx.Conv | nnx.ConvTranspose) and layer.mask is not None:
        raise UserError(f"{names_of([path])} has a mask of its own; exclude it, or build it without")
    own = shapes_of(layer)[1]
    found = kernel_variable(layer).get_value().shape
    stack = found[: len(found) - len(own)]
    shapes: dict[str, tuple[Any, Any]] = {"kernel": (found, own)}
    if isinstance(layer, nnx.Conv | nnx.Linear) and layer.bias is not None:
        shapes["bias"] = layer.bias.get_value().shape, (layer.out_features,)
    check_stack(path, stack, shapes)
    return stack


def _converted(
    layer: Any, stack: tuple[int, ...], support: np.ndarray | None, is_frozen: bool, **settings: Any
) -> KernelLayer:
    """Return the DCT plus Sparse layer for a layer of NNX, compact if there is a support."""
    layer_type = KINDS[type(layer)]
    # The type of the kernel itself: the network may have been cast since the layer was made.
    same = _same_arguments(layer, layer_type) | {"param_dtype": kernel_variable(layer).get_value().dtype}
    of_one_layer = None if support is None else support[(0,) * len(stack)]
    new = layer_type(**same, **settings, support=of_one_layer, **_zeros_for(type(layer)), rngs=nnx.Rngs(0))
    for variable in (new.kernel, new.support, new.alpha):
        if stack and variable is not None:
            variable.set_value(jnp.broadcast_to(variable[...], (*stack, *variable[...].shape)))
    metadata = kernel_variable(layer).get_metadata()
    whole = of_each(stack, new.own_kernel)(kernel_variable(layer)[...])
    if new.support is not None:
        new.support.set_value(jnp.asarray(support, jnp.int32))
    if support is not None or isinstance(layer, nnx.LinearGeneral | nnx.Einsum):  # the axes are other ones
        metadata = metadata_of_values(metadata, len(stack))
    if is_frozen:
        new.set_base(whole)
    elif new.offset is None:
        new.kernel.set_value(whole if new.support is None else values_at(whole, new.support[...]))
    if support is None:
        new.kernel.set_value(placed_like(new.kernel[...], whole))
    add_metadata(new.kernel, metadata)
    if new.bias is not None and layer.bias is not None:
        new.bias = nnx.data(layer.bias)  # the variable itself, which other modules may hold, too
    return new


def _is_layer(node: Any) -> bool:
    """Return whether a layer can be converted, or is a DCT plus Sparse layer already."""
    return has_counterpart(node) or isinstance(node, KernelLayer)
