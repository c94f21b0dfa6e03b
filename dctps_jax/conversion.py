"""Turn the layers of any NNX network into DCT plus Sparse layers."""

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import jax
from flax import nnx

from dctps_jax.errors import UserError
from dctps_jax.layers import DCTpSConv, DCTpSLinear, prunable_layers
from dctps_jax.offsets import Offset
from dctps_jax.pruning import ALLOCATIONS, allocate, apply_masks, prune, random_supports

SHARED = (
    "in_features", "out_features", "use_bias", "dtype", "param_dtype", "precision", "promote_dtype",
    "preferred_element_type",
)  # fmt: skip
OF_CONV = (
    "kernel_size", "strides", "padding", "input_dilation", "kernel_dilation", "feature_group_count",
    "conv_general_dilated",
)  # fmt: skip
OF_LINEAR = ("dot_general",)
LAYERS = (DCTpSConv, DCTpSLinear)


def convert(
    model: nnx.Module,
    *,
    density: float,
    method: str = "epl",
    exclude: Iterable[str] = (),
    offset: str | Offset | None = "dct",
    form: Literal["compact", "masked"] = "compact",
    key: jax.Array | None = None,
    alpha_init: float = 1.0,
    alpha_trainable: bool = True,
    dense_layers: Iterable[str] = (),
    layer_densities: Mapping[str, float] | Iterable[tuple[str, float]] = (),
    **options: Any,
) -> nnx.Module:
    """Return a copy of ``model`` in which every ``nnx.Conv`` and ``nnx.Linear`` is a layer with ``K = α·D + M⊙S``.

    ``density`` is that of all converted kernels together, divided among them by ``method``, at random positions from
    ``key`` (``jax.random.key(0)`` if not given), or chosen by a score, whose ``batch`` and other ``options`` are those
    of :func:`dctps_jax.pruning.prune`. Layers whose dotted path matches a pattern of ``exclude`` stay as they are, e.g.
    ``("head", "blocks.*.norm")``; so do subclasses and other layers with kernels, as ``nnx.LinearGeneral``. With an
    offset S starts at zero; with ``offset=None`` at the kept weights of the model. Biases are kept. A layer that occurs
    twice stays one.

    Raises :class:`~dctps_jax.errors.UserError` where there is nothing to convert, for a pattern that matches no layer,
    and for layers that have a mask or are stacked by ``nnx.vmap``; besides those of ``prune``.
    """
    key = jax.random.key(0) if key is None else key
    copy: Any = nnx.clone(model)
    # The paths in the order of their definition, which the copy has lost; a layer in several places by the first.
    originals = {path: getattr(parent, name) for path, parent, name in _layers_below(model, ())}
    first: dict[int, str] = {}
    for path in (*getattr(model, "layer_order", ()), *originals):
        first.setdefault(id(originals[path]), path)
    places = [place for place in _layers_below(copy, ()) if not isinstance(getattr(*place[1:]), LAYERS)]
    paths = [path for path, _, _ in places]
    patterns = [exclude] if isinstance(exclude, str) else list(exclude)
    for pattern in patterns:
        if not fnmatch.filter(paths, pattern):
            raise UserError(f"exclude: no layer matches {pattern!r}; the layers are: {', '.join(paths)}")
    random = method in ALLOCATIONS
    if random and options:
        raise UserError(f"{method} has no option {next(iter(options))!r}; random methods have none")
    converted: dict[int, nnx.Module] = {}
    for path, parent, name in places:
        if any(fnmatch.fnmatch(path, pattern) for pattern in patterns):
            continue
        layer = getattr(parent, name)
        if id(layer) not in converted:
            later = random and offset is not None and form == "compact" and density < 1
            converted[id(layer)] = _converted(
                path, layer, offset=offset, alpha_init=alpha_init, alpha_trainable=alpha_trainable,
                support="later" if later else None,
            )  # fmt: skip
        setattr(parent, name, converted[id(layer)])
    if not converted:
        raise UserError("the model has no nnx.Conv or nnx.Linear to convert")
    settings: dict[str, Any] = {"dense_layers": dense_layers, "layer_densities": layer_densities}
    everywhere = {path: getattr(parent, name) for path, parent, name in _layers_below(copy, ())}
    copy.layer_order = tuple(path for path in first.values() if isinstance(everywhere[path], LAYERS))
    layers = prunable_layers(copy)
    if density == 1 and not layer_densities:
        return copy
    if random and form == "compact":
        shapes = {path: layer.kernel_shape for path, layer in layers.items()}
        for path, support in random_supports(key, shapes, allocate(shapes, density, method, **settings)).items():
            layers[path].set_support(support)
    else:
        apply_masks(copy, prune(copy, method, density, key=key, **settings, **options), form)
    return copy


def _converted(path: str, layer: Any, **settings: Any) -> DCTpSConv | DCTpSLinear:
    is_conv = isinstance(layer, nnx.Conv)
    if is_conv and layer.mask is not None:
        raise UserError(f"{path} has a mask of its own; exclude it, or build it without")
    fields = {name: getattr(layer, name) for name in (*SHARED, *(OF_CONV if is_conv else OF_LINEAR))}
    kind = DCTpSConv if is_conv else DCTpSLinear
    new = kind(**fields, **settings, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))
    kernel = layer.kernel[...]
    if kernel.shape != new.kernel_shape:
        raise UserError(
            f"{path} has a kernel of shape {kernel.shape} where one layer has {new.kernel_shape}; stacked layers cannot be "
            "converted, exclude it"
        )
    if settings["offset"] is None:
        new.kernel.set_value(kernel)
    if new.bias is not None and layer.bias is not None:
        new.bias.set_value(layer.bias[...])
    return new


def _layers_below(node: nnx.Module, path: tuple[str, ...]) -> Iterator[tuple[str, nnx.Module, str]]:
    """Yield (path, parent, attribute) of the layers to convert and of those that are DCT plus Sparse already."""
    for name, child in vars(node).items():
        here = (*path, name)
        if type(child) in (nnx.Conv, nnx.Linear) or isinstance(child, LAYERS):
            yield ".".join(here), node, name
        elif isinstance(child, nnx.Module):
            yield from _layers_below(child, here)
