"""A network of one's own as one small file: of each compact layer the trained weights and their positions.

The file is safetensors. It has the arrays of the network by path, except the states of random streams. The metadata are
``format``, ``format_version``, ``layers`` (JSON: of each prunable layer its kernel's shape, stack, offset, form and
nnz), and ``digest`` (over the file's content).
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from dctps_jax.arguments import as_path, check_model, names_of
from dctps_jax.errors import UserError
from dctps_jax.files import check_target, parse_json
from dctps_jax.kernels import KernelLayer
from dctps_jax.prunable import NO_LAYERS, prunable_layers
from dctps_jax.runs.packing import flatten
from dctps_jax.safetensors_file import read_checked, write_checked

FORMAT, FORMAT_VERSION = "dctps_jax.network", 1
REMEDY = "write it again with save_network(model, file)"


def save_network(model: nnx.Module, file: Path | str) -> None:
    """Write the arrays of a network to a safetensors file, whole or not at all.

    Compact layers store the values of their trained weights and the positions, and no kernel. Random streams, such as
    that of ``nnx.Dropout``, are left out. An optimiser's state is not a part of the network.

    Raises :class:`~dctps_jax.errors.UserError` for a network without prunable layers, and where the file cannot be
    written.
    """
    check_model(model)
    file = as_path("file", file)
    check_target("file", file)
    layers = prunable_layers(model)
    if not layers:
        raise UserError(NO_LAYERS)
    described = {path: _description(layer) for path, layer in layers.items()}
    tensors = {name: np.asarray(array) for name, array in flatten(nnx.to_pure_dict(_state(model))).items()}
    write_checked(file, tensors, FORMAT, FORMAT_VERSION, {"layers": json.dumps(described)})


def load_network(model: nnx.Module, file: Path | str) -> Any:
    """Return a copy of ``model`` with the arrays and the forms of the layers that :func:`save_network` wrote.

    ``model`` is built as the saved network was, with any weights: its layers may be dense, masked or compact, and keep
    any number of weights.

    Raises :class:`~dctps_jax.errors.UserError` for a file that is missing, damaged, foreign or of a newer version, and
    for a network of other layers or arrays than the saved one.
    """
    check_model(model)
    file = as_path("file", file)
    tensors, metadata = read_checked(file, FORMAT, FORMAT_VERSION, "save_network", REMEDY)
    try:
        described = parse_json(metadata["layers"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{file} does not describe its layers; {REMEDY}") from error
    copy: Any = nnx.clone(model)
    layers = prunable_layers(copy)
    if other := described.keys() ^ layers.keys():
        path = min(other)
        has, lacks = (file, "the network") if path in described else ("the network", file)
        raise UserError(f"{names_of([path])} is a prunable layer in {has} and not in {lacks}; {_build_it(file)}")
    for path, layer in layers.items():
        there, here = described[path], _description(layer)
        for field in ("kernel_shape", "stack", "offset"):
            if there[field] != here[field]:
                raise UserError(
                    f"the {field} of {names_of([path])} is {there[field]} in {file} and {here[field]} in the network; "
                    f"{_build_it(file)}"
                )
        _take_form(layer, there)
    state = _state(copy)
    arrays = nnx.to_pure_dict(state)
    by_name = flatten(arrays)
    for name in sorted(tensors.keys() | by_name.keys()):
        there, here = (_words(of.get(name)) for of in (tensors, by_name))
        if there != here:
            raise UserError(f"{name} is {there} in {file} and {here} in the network; {_build_it(file)}")
    loaded = [jax.device_put(tensors[name], array.sharding) for name, array in by_name.items()]
    nnx.replace_by_pure_dict(state, jax.tree.unflatten(jax.tree.structure(arrays), loaded))
    nnx.update(copy, state)
    return copy


def _description(layer: KernelLayer) -> dict[str, Any]:
    return {
        "kernel_shape": list(layer.kernel_shape),
        "stack": list(layer.stack),
        "offset": None if layer.offset is None else layer.offset.name,
        "form": "dense" if layer.is_dense else "masked" if layer.support is None else "compact",
        "nnz": None if layer.support is None else layer.support[...].shape[-1],
    }


def _take_form(layer: KernelLayer, described: dict[str, Any]) -> None:
    """Give a layer the form of the saved one, with arrays of the same shapes."""
    if described["form"] == "compact":
        layer.set_support(np.broadcast_to(np.arange(described["nnz"]), (*layer.stack, described["nnz"])))
    elif described["form"] == "masked":
        layer.set_mask(np.ones((*layer.stack, *layer.kernel_shape), bool))
    else:
        layer.set_dense()


def _state(model: nnx.Module) -> nnx.State[Any, Any]:
    return nnx.state(model, nnx.Not(nnx.RngState))


def _words(array: Any) -> str:
    return "missing" if array is None else f"{array.dtype} of shape {array.shape}"


def _build_it(file: Path) -> str:
    return f"give a network that is built as the one in {file} was"
