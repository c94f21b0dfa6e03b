"""Read the original's numbers in tests/reference and put them into our models."""

import json
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dctps_jax.models import create_model
from dctps_jax.pruning import apply_masks
from dctps_jax.torch_compat import load_state_dict, to_state_dict

FOLDER = Path(__file__).parent / "reference"
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


@cache
def index(name: str):
    return json.loads((FOLDER / f"{name}.json").read_text())


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as archive:
        return dict(archive)


def our_name(network: str) -> str:
    return {"mobilenet": "mobilenet_v2"}.get(network, network)


def our_offset(offset: str) -> str | None:
    return None if offset == "None" else offset


def normalised(images: np.ndarray) -> np.ndarray:
    mean, std = np.array(CIFAR10_MEAN, np.float32), np.array(CIFAR10_STD, np.float32)
    return (images.astype(np.float32) / 255 - mean[None, None, None]) / std[None, None, None]


def masks_of(entry: dict, stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        path: np.unpackbits(stored[f"mask/{path}"])[: np.prod(shape)].astype(bool).reshape(shape)
        for path, shape in entry["layers"]
        if f"mask/{path}" in stored
    }


def model_for(entry: dict, stored: dict[str, np.ndarray], prefix: str, dtype=np.float64) -> nnx.Module:
    """Build the network of an index entry and fill it with the numbers under ``prefix``, masks included."""
    options = {"width": entry["kwargs"]["in_planes"]} if "in_planes" in entry["kwargs"] else {}
    model = create_model(
        our_name(entry["network"]),
        num_classes=10,
        offset=our_offset(entry["offset"]),
        init="zeros",
        rngs=nnx.Rngs(0),
        **options,
    )
    masks = masks_of(entry, stored)
    if masks:
        apply_masks(model, masks)
    state_dict = {}
    for torch_name, key, kind, torch_shape, axes, _ in index("name_map")["maps"][
        f"{entry['network']}/{entry['offset']}"
    ]:
        if kind == "offset":
            continue
        value = filled_up(stored, prefix, key, masks).astype(dtype)
        state_dict[torch_name] = value.transpose(np.argsort(axes)) if axes else value.reshape(torch_shape)
    load_state_dict(model, state_dict)
    return model


def numbers_of(model: nnx.Module, entry: dict) -> dict[str, np.ndarray]:
    """Return everything the model holds (or a tree of gradients put into it) by neutral key and layout."""
    state_dict = to_state_dict(model)
    numbers = {}
    for torch_name, key, kind, _, axes, _ in index("name_map")["maps"][f"{entry['network']}/{entry['offset']}"]:
        if kind != "offset":
            numbers[key] = state_dict[torch_name].transpose(axes) if axes else state_dict[torch_name]
    return numbers


def network_masks(bits: np.ndarray, layers: list) -> dict[str, np.ndarray]:
    """Unpack the masks of a whole network, stored one layer behind the other."""
    sizes = [int(np.prod(shape)) for _, shape in layers]
    starts = np.cumsum([0, *sizes])
    flat = np.unpackbits(bits)[: starts[-1]].astype(bool)
    return {
        path: flat[start : start + size].reshape(shape)
        for (path, shape), start, size in zip(layers, starts, sizes, strict=False)
    }


def filled_up(stored: dict[str, np.ndarray], prefix: str, key: str, masks: dict[str, np.ndarray]) -> np.ndarray:
    """Return a stored array; a kernel stored as its values on the mask is filled up with zeros."""
    if prefix + key in stored:
        return stored[prefix + key]
    mask = masks[key.rpartition("/")[0]]
    values = stored[f"{prefix}{key}_nz"]
    kernel = np.zeros(mask.shape, values.dtype)
    kernel[mask] = values
    return kernel


def cross_entropy(logits: jax.Array, labels: np.ndarray) -> jax.Array:
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(labels)[:, None], axis=1))
