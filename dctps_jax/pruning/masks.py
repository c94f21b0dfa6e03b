"""Put masks on a model, take them off it, and keep them in files."""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from dctps_jax.errors import UserError
from dctps_jax.layers import prunable_layers
from dctps_jax.npz import read_npz, write_npz


def apply_masks(model: nnx.Module, masks: Mapping[str, np.ndarray | jax.Array]) -> None:
    """Set the masks of the model's prunable layers, by dotted path, and zero the weights that they remove.

    Layers that ``masks`` does not name stay as they are. Raises :class:`~dctps_jax.errors.UserError` for a path that is
    no prunable layer or a mask of another shape, before anything is changed.
    """
    layers = prunable_layers(model)
    for path, mask in masks.items():
        if path not in layers:
            raise UserError(f"{path!r} is no prunable layer of the model; they are: {', '.join(layers)}")
        if tuple(mask.shape) != layers[path].kernel_shape:
            raise UserError(f"the mask of {path} has shape {mask.shape}, its kernel {layers[path].kernel_shape}")
    for path, mask in masks.items():
        layers[path].set_mask(mask)


def get_masks(model: nnx.Module) -> dict[str, np.ndarray]:
    """Return the mask of every prunable layer by dotted path; all True for a layer without one."""
    return {
        path: np.ones(layer.kernel_shape, bool) if layer.mask is None else np.asarray(layer.mask[...])
        for path, layer in prunable_layers(model).items()
    }


def save_masks(path: str | Path, masks: Mapping[str, np.ndarray | jax.Array]) -> None:
    """Write masks by dotted path to an ``.npz`` file, whole or not at all."""
    write_npz(Path(path), {name: np.asarray(mask, bool) for name, mask in masks.items()}, compress=True)


def load_masks(path: str | Path) -> dict[str, np.ndarray]:
    """Read what :func:`save_masks` wrote; a missing or damaged file is a :class:`~dctps_jax.errors.UserError`."""
    return {name: mask.astype(bool) for name, mask in read_npz(Path(path), "the masks of a run").items()}
