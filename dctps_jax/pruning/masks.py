"""Set the masks of a model, read them from it, and keep them in files."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from jax.core import Tracer

from dctps_jax.arguments import (
    as_array,
    as_path,
    check_by_path,
    check_choice,
    check_shape,
    check_zero_or_one,
    names_of,
    words,
)
from dctps_jax.errors import UserError
from dctps_jax.files import check_target, read_json
from dctps_jax.kernels import KernelLayer
from dctps_jax.npz import read_npz, write_npz
from dctps_jax.prunable import NO_LAYERS, check_not_normalized, prunable_layers
from dctps_jax.pruning.layer_rules import Shapes
from dctps_jax.supports import check_positions

FORMS = ("masked", "compact")
NOTHING_KEPT = "no mask keeps a weight, so that nothing could be trained; a mask is True where a weight stays"


def apply_masks(
    model: nnx.Module, masks: Mapping[str, np.ndarray | jax.Array], form: Literal["masked", "compact"] = "masked"
) -> None:
    """Set the masks of prunable layers, by dotted path. Weights where a mask is False are removed.

    ``form`` says how the remaining weights are stored: "masked" as dense arrays with zeros, "compact" as values and
    positions. Layers that ``masks`` does not name do not change. For layers that ``nnx.vmap`` has stacked, the mask has
    the axis of the layers before the axes of a kernel.

    Raises :class:`~dctps_jax.errors.UserError` for a path without a prunable layer, for a mask of another shape or with
    other values than 0 and 1, and for an unknown form. For the compact form it also raises for traced masks, and for
    stacked layers with unequal numbers of weights. The model is then unchanged.
    """
    check_choice("form", form, FORMS)
    layers = prunable_layers(model)
    if not layers:
        raise UserError(NO_LAYERS)
    _check_arrays(masks)
    for path, mask in masks.items():
        if path not in layers:
            raise UserError(f"{path!r} is no prunable layer of the model; they are: {', '.join(layers)}")
        shape = (*layers[path].stack, *layers[path].kernel_shape)
        if tuple(mask.shape) != shape:
            raise UserError(f"the mask of {names_of([path])} has shape {mask.shape}, its kernel {shape}")
    if set(masks) == set(layers) and not any(
        isinstance(mask, Tracer) or np.asarray(mask).any() for mask in masks.values()
    ):
        raise UserError(NOTHING_KEPT)
    of_masks = {path: layers[path] for path in masks}
    check_not_normalized(
        model, {path: layer for path, layer in of_masks.items() if form == "compact" or layer.has_fixed_part}
    )
    if form == "masked":
        for path, layer in of_masks.items():
            layer.set_mask(masks[path])
        return
    if any(isinstance(mask, Tracer) for mask in masks.values()):
        raise UserError(
            "the masks are traced, and a compact layer needs to know before which weights are trained; apply them "
            'outside of functions that are traced, e.g. by nnx.jit, or use form="masked"'
        )
    supports = {path: support_of_mask(path, np.asarray(mask), layers[path].stack) for path, mask in masks.items()}
    for path, support in supports.items():
        layers[path].set_support(support)


def _check_arrays(masks: Any) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` unless ``masks`` is a dict of arrays of 0 and 1 by path."""
    check_by_path("masks", masks, "masks")
    for path, mask in masks.items():
        check_mask(mask, names_of([path]))


def check_mask(mask: Any, name: str) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` unless the mask of ``name`` is an array of 0 and 1."""
    if not isinstance(mask, np.ndarray | np.bool_ | jax.Array):
        raise UserError(
            f"the mask of {name} is {words(mask)}; it must be an array of booleans, True where a weight is trained"
        )
    check_zero_or_one(mask, f"the mask of {name}")


def _as_booleans(masks: Mapping[str, np.ndarray | jax.Array]) -> dict[str, np.ndarray]:
    _check_arrays(masks)
    return {path: np.asarray(mask) != 0 for path, mask in masks.items()}


def get_masks(model: nnx.Module) -> dict[str, np.ndarray]:
    """Return the mask of every prunable layer by dotted path; all True for a layer that trains all weights."""
    return {path: mask_of_layer(layer) for path, layer in prunable_layers(model).items()}


def mask_of_layer(layer: KernelLayer) -> np.ndarray:
    """Return the mask of a masked or compact layer; all True for a layer that trains all weights."""
    for variable in (layer.mask, layer.support):
        if variable is not None and isinstance(variable.get_value(), Tracer):
            raise UserError(
                "the masks of the network are traced, and which weights are trained must be known before; prune "
                "outside of functions that are traced, e.g. by nnx.jit"
            )
    if layer.mask is not None:
        return np.asarray(layer.mask[...])
    if layer.support is None:
        return np.ones((*layer.stack, *layer.kernel_shape), bool)
    return mask_of_support(np.asarray(layer.support[...]), layer.kernel_shape)


def mask_of_support(support: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return the boolean mask of ``shape`` that is True at the positions of ``support``.

    All axes of ``support [*stack, nnz]`` except the last are also axes of the mask.

    Raises :class:`~dctps_jax.errors.UserError` for anything but a support of a kernel of this shape.
    """
    check_shape("shape", shape)
    support = np.asarray(as_array("support", support, "an array of positions"))
    check_positions(support, tuple(shape), support.shape[:-1])
    mask = np.zeros((*support.shape[:-1], math.prod(shape)), bool)
    np.put_along_axis(mask, support.astype(np.intp), True, axis=-1)
    return mask.reshape(*support.shape[:-1], *shape)


def support_of_mask(path: str, mask: np.ndarray, stack: Sequence[int] = ()) -> np.ndarray:
    """Return the ascending positions ``[*stack, nnz]`` where a mask ``[*stack, *kernel_shape]`` is True.

    Raises :class:`~dctps_jax.errors.UserError` if the layers of a stack keep unequal numbers of weights.
    """
    layers = mask.reshape(math.prod(stack), -1)
    counts = sorted({int(count) for count in np.count_nonzero(layers, axis=1)})
    if len(counts) > 1:
        raise UserError(
            f"the mask of {names_of([path])} keeps {counts[0]} to {counts[-1]} weights in each of its {len(layers)} "
            'stacked layers; compact layers that are stacked keep equally many: equalise the mask, or use form="masked"'
        )
    return (np.flatnonzero(layers) % layers.shape[1]).reshape(*stack, counts[0])


def save_masks(path: str | Path, masks: Mapping[str, np.ndarray | jax.Array]) -> None:
    """Write masks by dotted path to an ``.npz`` file. After a crash the file is either whole or unchanged.

    Raises :class:`~dctps_jax.errors.UserError` for masks with other values than 0 and 1, and if no file can be written
    to ``path``.
    """
    path = as_path("path", path)
    check_target("path", path)
    write_npz(path, _as_booleans(masks), compress=True)


def load_masks(path: str | Path) -> dict[str, np.ndarray]:
    """Read what :func:`save_masks` wrote.

    Raises :class:`~dctps_jax.errors.UserError` for a file that is missing, damaged or foreign.
    """
    path = as_path("path", path)
    masks = read_npz(path, "the masks of a run")
    for name, mask in masks.items():
        if mask.dtype != bool or mask.size == 0:
            raise UserError(
                f"{path} holds {name} as {mask.dtype} of shape {mask.shape}, which is no mask; it should hold "
                "the masks of a run"
            )
    return masks


def digest_of_masks(masks: Mapping[str, np.ndarray]) -> str:
    """Return a SHA-256 over the names, shapes and values of masks.

    Raises :class:`~dctps_jax.errors.UserError` for masks with other values than 0 and 1.
    """
    sha = hashlib.sha256()
    for name, mask in sorted(_as_booleans(masks).items()):
        sha.update(f"{name} {mask.shape}\n".encode() + np.packbits(mask).tobytes())
    return sha.hexdigest()


def load_run_masks(folder: str | Path) -> dict[str, np.ndarray]:
    """Return the masks of a run's directory.

    Raises :class:`~dctps_jax.errors.UserError` for damaged masks, for masks that do not match the run's results, and
    for an unfinished run that still moves its weights.
    """
    folder = as_path("folder", folder)
    if folder.is_file():
        raise UserError(f"{folder} is a file; name the directory of a run, which holds masks.npz")
    masks = load_masks(folder / "masks.npz")
    config, results = folder / "config.json", folder / "results.json"
    if results.exists():
        try:
            content = read_json(results)
            densities, digest = content["layer_densities"], content.get("digests", {}).get("masks.npz")
            # A layer without a mask keeps all its weights.
            kept = dict.fromkeys(densities, 1.0)
            kept |= {path: np.count_nonzero(mask) / mask.size for path, mask in masks.items()}
            # Results of version 0.1.0 have no digest.
            masks_match = kept == densities and digest in (None, digest_of_masks(masks))
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{results} is not what a finished run leaves; restore it, or take another run") from error
        if not masks_match:
            raise UserError(
                f"{folder / 'masks.npz'} holds other masks than {results} speaks of; restore it, or take another run"
            )
    elif config.exists():
        try:
            method = read_json(config)["sparse_training"]["method"]
        except (KeyError, TypeError) as error:
            raise UserError(f"{config} is no config of a run; restore it, or take another run") from error
        if method != "static":
            raise UserError(f"{folder} is not finished and still moves its weights ({method}); finish it first")
    return masks


def check_masks(masks: Mapping[str, np.ndarray], shapes: Shapes, source: str | Path) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` unless the masks of ``source`` fit layers with these ``shapes``."""
    foreign = sorted(set(masks) ^ set(shapes))
    if foreign:
        raise UserError(
            f"the masks of {source} are not of this network's layers (the first that differs is {foreign[0]}); name a "
            "run of the same network"
        )
    for path, mask in masks.items():
        if mask.shape != tuple(shapes[path]):
            raise UserError(
                f"the mask of {path} in {source} has shape {mask.shape}, the kernel {tuple(shapes[path])}; name a "
                "run of the same network"
            )
