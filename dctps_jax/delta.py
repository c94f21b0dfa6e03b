"""What sparse fine-tuning has changed of a network, as one small file: write it, and add it to the same network.

The file is safetensors. Of each kernel it has ``positions/PATH`` (ascending, in the flattened kernel of the plain
network) and ``values/PATH``, what is added there. ``whole/PATH`` are arrays that replace those of the network:
parameters of layers that were excluded and of LoRA, and the statistics of BatchNorm. The metadata are ``format``,
``format_version``, ``base`` (a SHA-256 over all that was frozen, by path), ``dtypes`` (the types of these arrays), and
``digest`` (over the file's content).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dctps_jax.arguments import as_path, check_model, names_of
from dctps_jax.errors import UserError
from dctps_jax.files import check_target
from dctps_jax.kernels import Frozen, KernelLayer, SparseParam
from dctps_jax.layer_kinds import DCTpSEmbed
from dctps_jax.prunable import prunable_layers
from dctps_jax.pruning.masks import mask_of_layer
from dctps_jax.runs.packing import digest
from dctps_jax.safetensors_file import read_checked, write_checked

FORMAT, FORMAT_VERSION = "dctps_jax.delta", 1
REMEDY = "write it again with export_delta(model, file)"


def export_delta(model: nnx.Module, file: Path | str) -> None:
    """Write what is trained of a network that ``convert(…, offset="frozen")`` made, whole or not at all.

    The file has the sparse part S, the parameters that are not frozen, and the statistics of BatchNorm: what
    :func:`apply_delta` needs beside the network that was converted.

    Raises :class:`~dctps_jax.errors.UserError` for a network with a layer that has no frozen kernel, and where the file
    cannot be written.
    """
    check_model(model)
    file = as_path("file", file)
    check_target("file", file)
    paths = {id(layer): path for path, layer in _layers(model).items()}
    if not paths:
        raise UserError('the network has no DCT plus Sparse layers; convert(model, offset="frozen", …) makes them')
    tensors: dict[str, np.ndarray] = {}
    base: dict[str, np.ndarray] = {}
    for layer in prunable_layers(model).values():
        path = paths[id(layer)]
        if layer.base is None:
            raise UserError(
                f'{names_of([path])} is no layer of convert(model, offset="frozen", …); a delta is what was added to '
                "frozen kernels"
            )
        name = f"{path}.{'embedding' if isinstance(layer, DCTpSEmbed) else 'kernel'}".lstrip(".")
        base[name] = np.asarray(layer.plain_kernel(layer.base[...]))
        positions = np.flatnonzero(layer.plain_kernel(jnp.asarray(mask_of_layer(layer))))
        tensors[f"positions/{name}"] = positions.astype(np.int64 if base[name].size > 2**31 else np.int32)
        tensors[f"values/{name}"] = np.asarray(layer.plain_kernel(layer.sparse_kernel())).ravel()[positions]
    of_layers = {id(layer.base) for layer in prunable_layers(model).values()}
    for name, variable in _variables(model).items():
        if isinstance(variable, Frozen) and id(variable) not in of_layers:
            base[name] = np.asarray(variable[...])
        elif isinstance(variable, nnx.Param | nnx.BatchStat) and not isinstance(variable, SparseParam):
            tensors[f"whole/{name}"] = np.asarray(variable[...])
    write_checked(file, tensors, FORMAT, FORMAT_VERSION, {"base": digest(base), "dtypes": _dtypes(base)})


def apply_delta(model: nnx.Module, file: Path | str) -> Any:
    """Return a copy of ``model`` with what :func:`export_delta` wrote added: it computes what the fine-tuned one did.

    ``model`` is the network that was converted, of the layers of NNX, and stays as it is.

    Raises :class:`~dctps_jax.errors.UserError` for a file that is missing, damaged, foreign or of a newer version, and
    where ``model`` is not the network that was converted.
    """
    check_model(model)
    file = as_path("file", file)
    tensors, metadata = read_checked(file, FORMAT, FORMAT_VERSION, "export_delta", REMEDY)
    base, dtypes = metadata["base"], metadata.get("dtypes", "")  # the types of its arrays, where they are known
    if _layers(model):
        raise UserError(
            f"the network has DCT plus Sparse layers, and {file} is added to the plain network that was converted; "
            "give that one"
        )
    copy: Any = nnx.clone(model)
    variables = _variables(copy)
    kinds: dict[str, dict[str, np.ndarray]] = {"positions": {}, "values": {}, "whole": {}}
    for name, array in tensors.items():
        kind, _, path = name.partition("/")
        kinds[kind][path] = array
    frozen = {
        name: np.asarray(variable[...])
        for name, variable in variables.items()
        if isinstance(variable, nnx.Param) and name not in kinds["whole"]
    }
    replaced = {name: variables[name][...].shape for name in kinds["whole"] if name in variables}
    if replaced != {name: array.shape for name, array in kinds["whole"].items()} or digest(frozen) != base:
        if dtypes and dtypes != _dtypes(frozen):
            raise UserError(
                f"{file} was written for a network in {dtypes}, but this one is in {_dtypes(frozen)}; give the network "
                f"that was converted, in {dtypes}"
            )
        raise UserError(
            f"{file} was written for another network than this one, or for other weights of it; give the network that "
            "was converted, as it was then"
        )
    for name, values in kinds["values"].items():
        kernel = variables[name][...]
        positions = kinds["positions"][name]
        # The sum has the wider type of both, as that of the fine-tuned network.
        kernel = kernel.astype(jnp.promote_types(kernel.dtype, values.dtype))
        values = jnp.asarray(values, kernel.dtype)
        variables[name].set_value(kernel.ravel().at[positions].add(values).reshape(kernel.shape))
    for name, array in kinds["whole"].items():
        variables[name].set_value(jnp.asarray(array))
    return copy


def _dtypes(arrays: Mapping[str, np.ndarray]) -> str:
    return ", ".join(sorted({str(array.dtype) for array in arrays.values()}))


def _layers(model: nnx.Module) -> Mapping[str, KernelLayer]:
    """Return the DCT plus Sparse layers by the path under which :func:`_variables` knows them."""
    return {_dotted(path): node for path, node in nnx.iter_graph(model) if isinstance(node, KernelLayer)}


def _variables(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Return all variables by dotted path, each under one path."""
    return {_dotted(path): node for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Variable)}


def _dotted(path: Iterable[Any]) -> str:
    return ".".join(map(str, path))
