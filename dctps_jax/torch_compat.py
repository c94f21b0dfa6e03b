"""Read and write checkpoints of the original PyTorch code: its names and layouts (OIHW, transposed matrices)."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dctps_jax.arguments import names_of
from dctps_jax.errors import UserError, first_line
from dctps_jax.kernels import KernelLayer
from dctps_jax.layers import DCTpSConv, DCTpSLinear
from dctps_jax.npz import read_npz, write_npz
from dctps_jax.offsets import OFFSETS, Offset
from dctps_jax.pruning.masks import mask_of_layer

BATCH_NORM_NAMES = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One array of the original: its name there, its variable here, and the axes that bring it into our layout."""

    torch_name: str
    variable: nnx.Variable
    axes: tuple[int, ...] = ()
    torch_shape: tuple[int, ...] = ()
    layer: KernelLayer | None = None

    def read(self) -> np.ndarray:
        """Return the array; for a kernel of any form, its whole sparse part."""
        array = np.asarray(self.variable[...] if self.layer is None else self.layer.sparse_kernel())
        return array.astype(np.float32) if array.dtype == jnp.bfloat16 else array  # .npz has no bfloat16

    def write(self, array: np.ndarray) -> None:
        if self.layer is not None and self.layer.support is not None:
            array = array.ravel()[np.asarray(self.layer.support[...])]
        self.variable.set_value(jnp.array(array))

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        return np.transpose(array, self.axes) if self.axes else array.reshape(self.variable.shape)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        return np.transpose(array, np.argsort(self.axes)) if self.axes else array.reshape(self.torch_shape)


def load_state_dict(model: nnx.Module, state_dict: Mapping[str, np.ndarray]) -> None:
    """Fill ``model`` with the arrays of a state dict of the same network with the same offset in the original code.

    Names and layouts are the original's. Without offset: ``layer1.0.conv1.weight``, OIHW. With an offset:
    ``layer1.0.conv1.conv.weight``, ``.scaling`` (α) and, optionally, ``.dct.weight`` (D, only compared). BatchNorm:
    ``weight``, ``bias``, ``running_mean``, ``running_var`` (``num_batches_tracked`` is ignored). Values get the wider
    of their own float type and the model's. If the model has masks, the loaded kernels must be zero outside them.

    Raises :class:`~dctps_jax.errors.UserError`, before anything in the model is changed, with a list of every missing,
    unknown and misshapen entry, and for a model with an offset, layers or parameters that the original does not have.
    """
    entries = list(_entries(model))
    offsets = dict(_offsets(model))
    names = {entry.torch_name for entry in entries}
    problems = [f"missing {entry.torch_name}" for entry in entries if entry.torch_name not in state_dict]
    for name in state_dict:
        if name not in names and name not in offsets and not name.endswith(".num_batches_tracked"):
            problems.append(f"unknown {name}")
    loaded = {}
    for entry in entries:
        if entry.torch_name not in state_dict:
            continue
        array = np.asarray(state_dict[entry.torch_name])
        if array.shape != entry.torch_shape:
            problems.append(f"{entry.torch_name} has shape {array.shape}, the model needs {entry.torch_shape}")
        else:
            loaded[entry.torch_name] = array
    for name, expected in offsets.items():
        if name in state_dict and not _same(np.asarray(state_dict[name]), expected()):
            problems.append(f"{name} is not the DCT kernel of its shape")
    for name, mask, axes in _masks(model):
        if name in loaded and np.any(np.transpose(loaded[name], axes)[~mask]):
            problems.append(f"{name} is not zero outside the layer's mask")
    if problems:
        raise UserError("the state dict does not fit the model: " + "; ".join(problems))
    for entry in entries:
        array = entry.from_torch(loaded[entry.torch_name])
        # Without x64 the original's float64 αs become float32 here, on purpose and without a warning.
        dtype = jax.dtypes.canonicalize_dtype(jnp.promote_types(entry.variable.dtype, array.dtype))
        entry.write(array.astype(dtype))


def to_state_dict(model: nnx.Module) -> dict[str, np.ndarray]:
    """Return the model's numbers under the original's names and in its layouts.

    :func:`load_state_dict` reads them back.

    The offsets are included (``….dct.weight``, float32), as in the original's own checkpoints. Pruned weights are
    zeros. ``num_batches_tracked`` is left out, which PyTorch allows. Arrays in bfloat16 become float32.

    Raises :class:`~dctps_jax.errors.UserError` for a model with an offset, layers or parameters that the original does
    not have.
    """
    state_dict = {entry.torch_name: entry.to_torch(entry.read()) for entry in _entries(model)}
    return state_dict | {name: offset() for name, offset in _offsets(model)}


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Read a state dict from an ``.npz`` file, or with PyTorch from a ``.pt``, ``.pth`` or ``.model`` file.

    Raises :class:`~dctps_jax.errors.UserError` if the file is missing, damaged or not a state dict.
    """
    path = Path(path)
    if path.suffix == ".npz":
        return read_npz(path, "a state dict")
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a state dict as .npz, or as .pt, .pth or .model with PyTorch")
    if path.suffix not in (".pt", ".pth", ".model"):
        raise UserError(f"{path} ends in {path.suffix!r}; a state dict ends in .npz, .pt, .pth or .model")
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"{path} needs PyTorch, which is not installed; install it, or save the arrays as .npz where it is: "
            "np.savez(name, **{k: v.numpy() for k, v in model.state_dict().items()})"
        ) from error
    try:
        state_dict = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.detach().numpy() for name, tensor in state_dict.items()}
    except Exception as error:  # torch.load raises whatever its unpickler meets
        raise UserError(f"{path} is not a PyTorch state dict ({first_line(error)})") from error


def write_state_dict(path: str | Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Write a state dict as ``.npz``; in PyTorch, ``load_state_dict({k: torch.from_numpy(v) …})`` reads it."""
    path = Path(path)
    if path.suffix != ".npz":
        raise UserError(f"{path} ends in {path.suffix!r}; a state dict is written as .npz")
    write_npz(path, state_dict)


def _entries(model: nnx.Module) -> Iterator[_Entry]:
    entries = list(_known_entries(model))
    known = {id(entry.variable) for entry in entries}
    for path, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Param) and id(node) not in known:
            raise UserError(
                f"{'.'.join(map(str, path))} is a parameter of shape {node.get_value().shape}; the original's "
                "checkpoints have parameters of DCTpSConv, DCTpSLinear and nnx.BatchNorm, and single numbers"
            )
    yield from entries


def _known_entries(model: nnx.Module) -> Iterator[_Entry]:
    for path, node in _modules(model):
        if isinstance(node, KernelLayer) and (node.base is not None or node.stack):
            found = "has a frozen kernel" if node.base is not None else "holds layers that nnx.vmap has stacked"
            raise UserError(f"{names_of([path])} {found}, which the original's checkpoints do not know")
        if isinstance(node, DCTpSConv | DCTpSLinear):
            inner = _inner_name(path, node)
            axes = _axes(node)
            shape = node.kernel_shape
            torch_shape = tuple(shape[axis] for axis in np.argsort(axes))
            yield _Entry(f"{inner}.weight", node.kernel, axes, torch_shape, node)
            if node.bias is not None:
                yield _Entry(f"{inner}.bias", node.bias, (0,), node.bias.shape)
            if node.alpha is not None:
                yield _Entry(f"{path}.scaling", node.alpha)
        elif isinstance(node, KernelLayer):
            raise UserError(
                f"{path} is a {type(node).__name__}; the original's checkpoints are for networks of DCTpSConv and "
                "DCTpSLinear"
            )
        elif isinstance(node, nnx.BatchNorm):
            for name, torch_name in BATCH_NORM_NAMES.items():
                variable = getattr(node, name)
                if variable is not None:  # BatchNorm may have no scale and no bias
                    yield _Entry(f"{path}.{torch_name}", variable, (0,), variable.shape)
        else:
            # Fixup's scalars hang on the blocks themselves; PyTorch gives them one axis.
            for name, child in vars(node).items():
                if isinstance(child, nnx.Param) and child.get_value().size == 1:
                    yield _Entry(f"{path}.{name}".lstrip("."), child, (), (1,))


def _offsets(model: nnx.Module):
    """Yield the name of every stored offset and a function that makes it, so that few offsets exist at a time."""
    for path, node in _modules(model):
        if isinstance(node, DCTpSConv | DCTpSLinear) and node.offset is not None:
            if node.offset.torch_name is None:
                known = " or ".join(repr(offset.name) for offset in OFFSETS.values() if offset.torch_name is not None)
                raise UserError(
                    f"{path} has the offset {node.offset.name!r}; the original's checkpoints are for networks with the "
                    f"offset {known} or without one"
                )
            yield f"{path}.{node.offset.torch_name}.weight", partial(_torch_offset, node, node.offset)


def _torch_offset(layer: DCTpSConv | DCTpSLinear, offset: Offset) -> np.ndarray:
    shape = layer.kernel_shape
    kernel = offset.matrix(math.prod(shape[:-1]), shape[-1]).astype(np.float32).reshape(shape)
    return np.transpose(kernel, np.argsort(_axes(layer)))


def _same(array: np.ndarray, expected: np.ndarray) -> bool:
    return array.shape == expected.shape and np.allclose(array, expected, rtol=0, atol=1e-6)


def _masks(model: nnx.Module) -> Iterator[tuple[str, np.ndarray, tuple[int, ...]]]:
    for path, node in _modules(model):
        if isinstance(node, DCTpSConv | DCTpSLinear) and (node.mask is not None or node.support is not None):
            yield f"{_inner_name(path, node)}.weight", mask_of_layer(node), _axes(node)


def _modules(model: nnx.Module) -> Iterator[tuple[str, nnx.Module]]:
    for path, node in nnx.iter_modules(model):
        yield ".".join(map(str, path)), node


def _inner_name(path: str, layer: DCTpSConv | DCTpSLinear) -> str:
    """Return the name of the ordinary layer that the original wraps in each DCT layer, one of two names."""
    if layer.offset is None:
        return path
    return f"{path}.conv" if isinstance(layer, DCTpSConv) else f"{path}.linear"


def _axes(layer: DCTpSConv | DCTpSLinear) -> tuple[int, ...]:
    """Return the axes that bring a PyTorch kernel into our layout: OIHW to HWIO, or (out, in) to (in, out)."""
    rank = len(layer.kernel_shape)
    return (*range(2, rank), 1, 0)
