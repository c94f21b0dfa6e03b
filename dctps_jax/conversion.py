"""Turn the layers of any NNX network into DCT plus Sparse layers."""

import fnmatch
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from dctps_jax.arguments import (
    check_choice,
    check_flag,
    check_has_arrays,
    check_model,
    check_number,
    names_of,
    pairs,
    patterns,
)
from dctps_jax.errors import UserError
from dctps_jax.frozen import check_all_plain, freeze_all_but, unfreeze
from dctps_jax.kernels import KernelLayer
from dctps_jax.layer_conversion import converted_layer, kernel_shape_of, plain_layer, stack_of
from dctps_jax.layer_kinds import COUNTERPARTS, has_counterpart, kernel_variable
from dctps_jax.offsets import OFFSETS, Offset
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

CONVERTIBLE = ", ".join(f"nnx.{kind.__name__}" for kind in COUNTERPARTS if kind is not nnx.Embed)


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

    The layers are ``nnx.Conv``, ``nnx.Linear``, ``nnx.LinearGeneral`` (also inside ``nnx.MultiHeadAttention``),
    ``nnx.Einsum`` and ``nnx.ConvTranspose``. A kernel with several axes of inputs or outputs becomes a matrix,
    inputs × outputs, and D and the mask have the shape of that matrix.

    - ``density``: trained ÷ all weights of the converted kernels.
    - ``method``: an allocation, which divides the weights among the kernels and places them at random, or a score. Its
      ``batch`` and other ``options``, ``dense_layers``, ``layer_densities`` and ``pattern`` are the arguments of
      :func:`dctps_jax.pruning.prune`.
    - ``exclude``: patterns of dotted paths, e.g. ``("head", "blocks.0.*")``. Layers that match one stay as they are.
    - ``offset``: with an offset S starts at zero. With None it starts at the kept weights of the model. "frozen" is for
      fine-tuning: K = W₀ + M⊙S, where W₀ is the model's own kernel and S starts at zero. All other parameters are
      frozen (:class:`~dctps_jax.kernels.Frozen`, which is no ``nnx.Param``), except in excluded layers and in
      ``nnx.LoRA``. See :func:`~dctps_jax.export_delta`.
    - ``form``: "compact" stores the trained weights and their positions, "masked" whole kernels with zeros.
    - ``key``: a key of JAX or a seed for the random positions, by default 0.
    - ``alpha_init``, ``alpha_trainable``: the initial α of each layer, and whether it is trained.
    - ``embeddings``: True also converts ``nnx.Embed``.

    Subclasses of these layers, layers inside an ``nnx.LoRA``, and an ``nnx.Einsum`` that is no product with a matrix
    stay as they are. Biases stay, and the metadata of kernels and biases (see
    :meth:`~dctps_jax.kernels.KernelLayer.set_support`). A layer that occurs twice stays one. Layers that ``nnx.vmap``
    has stacked stay stacked: each of them has an α and weights of its own, and all have equally many.

    Raises :class:`~dctps_jax.errors.UserError` if there is nothing to convert, for a pattern that matches no layer, for
    layers that have a mask, for a stack along another axis than the first, for stacks and DCT plus Sparse layers in a
    network that is to be frozen, and the errors of ``prune``.
    """
    key = as_key(0 if key is None else key)
    check_model(model)
    check_has_arrays("convert", model)
    check_density(density, "density")
    check_choice("form", form, FORMS)
    check_number("alpha_init", alpha_init)
    check_flag("alpha_trainable", alpha_trainable)
    check_flag("embeddings", embeddings)
    check_method(method, options, inspect.signature(convert).parameters)
    if isinstance(offset, str):
        check_choice("offset", offset, (*OFFSETS, "frozen"))
    parse_pattern(pattern, density)
    fixed_layers: dict[str, Any] = {
        "dense_layers": patterns("dense_layers", dense_layers),
        "layer_densities": pairs("layer_densities", layer_densities),
    }
    copy: Any = nnx.clone(model)
    layers, other_layers = _layers_to_convert(model, copy, embeddings, exclude)
    is_frozen = isinstance(offset, str) and offset == "frozen"
    if is_frozen:
        if alpha_init != 1.0 or not alpha_trainable:
            raise UserError('offset is "frozen", K = W₀ + S, which has no α; leave out alpha_init and alpha_trainable')
        check_all_plain(layers)
    if all(isinstance(layer, KernelLayer) for layer in layers.values()):
        raise UserError(
            f"the model has no layer to convert; convert knows {CONVERTIBLE} (nnx.Embed with embeddings=True), and "
            "leaves what is excluded or converted already"
        )
    stacks = {path: stack for path, layer in layers.items() if (stack := stack_of(path, layer))}
    shapes = {path: kernel_shape_of(layer) for path, layer in layers.items()}
    if is_frozen:
        _check_no_stack(stacks)
        freeze_all_but(copy, [*map(kernel_variable, layers.values()), *variables_in(other_layers)])
    # Layers that have masks already keep them, so prune chooses within them.
    is_pruned = any(isinstance(layer, KernelLayer) and not layer.is_dense for layer in layers.values())
    is_dense = trains_all_weights(method, density, fixed_layers["layer_densities"]) and not is_pruned
    if is_dense:  # the call checks the patterns
        allocate(shapes, density, "uniform", dense_layers=fixed_layers["dense_layers"], stacks=stacks)
    if form == "compact" and not is_dense:
        check_not_normalized(copy, layers)
    else:
        check_not_normalized(copy, {path: layer for path, layer in layers.items() if _gets_fixed_part(layer, offset)})
    # Random supports of new layers need no dense kernels.
    supports: dict[str, np.ndarray] = {}
    if form == "compact" and method in ALLOCATIONS and not (is_dense or is_pruned or pattern):
        counts = allocate(shapes, density, method, **fixed_layers, stacks=stacks)
        supports = random_supports(key, shapes, counts, stacks)
    alpha = {"offset": None if is_frozen else offset, "alpha_init": alpha_init, "alpha_trainable": alpha_trainable}
    converted: dict[int, Any] = {}
    for path, layer in layers.items():
        if not isinstance(layer, KernelLayer):
            converted[id(layer)] = converted_layer(layer, stacks.get(path, ()), supports.get(path), is_frozen, **alpha)
        elif supports:
            layer.set_support(supports[path])
    copy = replace_layers(copy, converted)
    setattr(copy, ORDER, tuple(layers))
    if not supports and not is_dense:
        apply_masks(copy, prune(copy, method, density, key=key, pattern=pattern, **fixed_layers, **options), form)
    return copy


def _gets_fixed_part(layer: Any, offset: Any) -> bool:
    """Return whether a layer has an offset or a frozen kernel after the conversion; a converted one stays as it is."""
    return layer.has_fixed_part if isinstance(layer, KernelLayer) else offset is not None


def to_plain(model: nnx.Module) -> Any:
    """Return a copy of ``model`` with the layers of NNX, ``nnx.Conv`` and others, in place of DCT plus Sparse layers.

    Their kernels are K = α·D + M⊙S, written out, so that the copy computes the same, and all weights of it are trained.
    Programs that know only the layers of NNX work with the copy.
    """
    check_model(model)
    check_has_arrays("to_plain", model)
    copy: Any = nnx.clone(model)
    unfreeze(copy)
    copy = replace_layers(copy, {id(layer): plain_layer(layer) for layer in prunable_layers(copy).values()})
    if hasattr(copy, ORDER):
        delattr(copy, ORDER)
    return copy


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


def _layers_to_convert(
    model: nnx.Module, copy: nnx.Module, embeddings: bool, exclude: Iterable[str]
) -> tuple[dict[str, Any], list[Any]]:
    """Return the layers of the copy that get weights, each by its first path, and those that could but are excluded.

    DCT plus Sparse layers are among the first. The copy has lost the order of the layers, so it comes from the model.
    """
    in_copy = dict(find_layers(copy, _is_layer))
    allocatable = _allocatable(model, embeddings)
    layers = {path: in_copy[path] for path in dict.fromkeys(_first_paths(model, allocatable, exclude).values())}
    chosen = {id(layer) for layer in layers.values()}
    return layers, [in_copy[path] for path in allocatable if id(in_copy[path]) not in chosen]


def _check_no_stack(stacks: Mapping[str, Any]) -> None:
    if stacks:
        raise UserError(
            f"nnx.vmap has stacked {names_of(stacks)}, and offset is 'frozen', which is for layers that are not "
            "stacked; exclude them, or keep them in an nnx.List"
        )


def _is_layer(node: Any) -> bool:
    """Return whether a layer can be converted, or is a DCT plus Sparse layer already."""
    return has_counterpart(node) or isinstance(node, KernelLayer)
