"""A network of one's own as one small file: of each compact layer the trained weights and their positions.

The file is safetensors. It has the arrays of the network by path, except the states of random streams. The metadata are
``format``, ``format_version``, ``layers`` (JSON: of each prunable layer its kernel's shape, stack, offset, form and
nnz), and ``digest`` (over the file's content).
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dctps_jax.arguments import as_path, check_has_arrays, check_model, check_not_traced, names_of
from dctps_jax.errors import UserError, some_of
from dctps_jax.files import check_target, parse_json
from dctps_jax.kernels import KernelLayer
from dctps_jax.prunable import NO_LAYERS, prunable_layers
from dctps_jax.runs.packing import flatten
from dctps_jax.safetensors_file import read_checked, write_checked

FORMAT, FORMAT_VERSION = "dctps_jax.network", 1
REMEDY = "check the path, or write it with save_network(model, file)"
MAX_SHOWN = 5


def save_network(model: nnx.Module, file: Path | str) -> None:
    """Write the arrays of a network to a safetensors file, whole or not at all.

    Compact layers store the values of their trained weights and the positions, and no kernel. Random streams, such as
    that of ``nnx.Dropout``, are left out. An optimiser's state is not a part of the network.

    Raises :class:`~dctps_jax.errors.UserError` for a network without prunable layers or without arrays, for variables
    that are no arrays, inside a traced function, and where the file cannot be written.
    """
    check_model(model)
    check_has_arrays("save_network", model)
    check_not_traced("save_network", model)
    file = as_path("file", file)
    check_target("file", file)
    layers = prunable_layers(model)
    if not layers:
        raise UserError(NO_LAYERS)
    described = {path: _description(layer) for path, layer in layers.items()}
    arrays = nnx.to_pure_dict(_state(model))
    by_name = flatten(arrays)
    if len(by_name) < len(jax.tree.leaves(arrays)):
        raise UserError("two arrays of the network have the same path; give its modules names without '/'")
    for name, array in by_name.items():
        if not isinstance(array, jax.Array | np.ndarray):
            raise UserError(
                f"{name} is {type(array).__name__}, and a file holds arrays; make it one, e.g. jnp.array(3)"
            )
    tensors = {name: np.asarray(array) for name, array in by_name.items()}
    write_checked(file, tensors, FORMAT, FORMAT_VERSION, {"layers": json.dumps(described)})


def load_network(model: nnx.Module, file: Path | str) -> Any:
    """Return a copy of ``model`` with the arrays and the forms of the layers that :func:`save_network` wrote.

    ``model`` is built as the saved network was, with any weights: its layers may be dense, masked or compact, and keep
    any number of weights. Make the optimiser afterwards: the arrays have the lengths of the saved ones.

    Raises :class:`~dctps_jax.errors.UserError` for a file that is missing, damaged, foreign or of a newer version, for
    a network of other layers or arrays than the saved one or without arrays, and inside a traced function.
    """
    check_model(model)
    check_has_arrays("load_network", model)
    check_not_traced("load_network", model)
    file = as_path("file", file)
    tensors, metadata = read_checked(file, FORMAT, FORMAT_VERSION, "save_network", REMEDY)
    try:
        described = parse_json(metadata["layers"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{file} does not describe its layers; {REMEDY}") from error
    copy: Any = nnx.clone(model)
    layers = prunable_layers(copy)
    _check_layers(file, described, layers)
    for path, layer in layers.items():
        _take_form(layer, described[path])
    state = _state(copy)
    arrays = nnx.to_pure_dict(state)
    by_name = flatten(arrays)
    for name in sorted(tensors.keys() | by_name.keys()):
        there, here = (_words(of.get(name)) for of in (tensors, by_name))
        if there != here:
            raise UserError(f"{name} is {there} in {file} and {here} in the network; {_build_it(file)}")
    loaded = [_placed(tensors[name], array) for name, array in by_name.items()]
    nnx.replace_by_pure_dict(state, jax.tree.unflatten(jax.tree.structure(arrays), loaded))
    nnx.update(copy, state)
    return copy


def _check_layers(file: Path, described: dict[str, Any], layers: dict[str, KernelLayer]) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` unless the layers are built as those of the file."""
    if not layers:
        raise UserError(
            "the network has no prunable layers; convert it first, with the options of the saved one: "
            "load_network(convert(model, density=…), file)"
        )
    if described.keys() != layers.keys():
        there, here = (some_of([names_of([path]) for path in paths], MAX_SHOWN) for paths in (described, layers))
        raise UserError(
            f"the prunable layers are {there} in {file} and {here} in the network; {_build_it(file)}, and convert it "
            "with the same options"
        )
    for path, layer in layers.items():
        there, here = described[path], _description(layer)
        for field in ("kernel_shape", "stack", "offset"):
            if there[field] != here[field]:
                raise UserError(
                    f"the {field} of {names_of([path])} is {there[field]} in {file} and {here[field]} in the network; "
                    f"{_build_it(file)}"
                )


def _description(layer: KernelLayer) -> dict[str, Any]:
    return {
        "kernel_shape": list(layer.kernel_shape),
        "stack": list(layer.stack),
        "offset": "frozen" if layer.base is not None else None if layer.offset is None else layer.offset.name,
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


def _state(model: nnx.Module) -> Any:
    return nnx.state(model, lambda _, value: not isinstance(value, nnx.RngState) and not _is_key(value))


def _is_key(value: Any) -> bool:
    array = value.get_value() if isinstance(value, nnx.Variable) else value
    return jnp.issubdtype(getattr(array, "dtype", np.dtype(float)), jax.dtypes.prng_key)


def _placed(array: np.ndarray, old: Any) -> jax.Array:
    """Return ``array`` on the devices of ``old`` if it is bound to them; an array that is not follows its program."""
    return jax.device_put(array, old.sharding) if getattr(old, "committed", False) else jnp.asarray(array)


def _words(array: Any) -> str:
    return "missing" if array is None else f"{getattr(array, 'dtype', type(array))} of shape {np.shape(array)}"


def _build_it(file: Path) -> str:
    return f"give a network that is built as the one in {file} was"
