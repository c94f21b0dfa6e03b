"""Put masks on a model and take them off it."""

from collections.abc import Mapping

import jax
import numpy as np
from flax import nnx

from dctps_jax.errors import UserError
from dctps_jax.layers import prunable_layers


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
