"""What each prunable layer of a network has to compute for inputs of a shape, by an abstract call."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from dctps_jax.kernels import work_of
from dctps_jax.models.blocks import Running
from dctps_jax.ops.geometry import Geometry
from dctps_jax.ops.work import Work
from dctps_jax.prunable import prunable_layers

# The functions that a layer calls when only JAX's own operation can compute it.
NATIVE = ("_native_convolution", "_native_product", "_native_einsum")


class Call(NamedTuple):
    """A use of a layer: its kernel, the positions of the outputs of the whole batch, and what a method has to compute.

    Each of the ``groups`` of output channels sees inputs of its own. ``dtype`` is the dtype of the inputs. ``work`` and
    ``dtype`` are None if the layer uses JAX's own operation. The ``nnz`` of a layer that is not compact is the size of
    its kernel.
    """

    path: str
    kernel_shape: tuple[int, ...]
    output_positions: int
    groups: int
    work: Work | None = None
    dtype: Any = None


def calls_of(model: nnx.Module, inputs: tuple[int, ...]) -> list[Call]:
    """Return the uses of the prunable layers in their order.

    ``inputs`` is the shape of the network's inputs. Nothing is computed.
    """
    calls: list[Call] = []
    copy = nnx.clone(model)
    copy.eval()
    if isinstance(getattr(copy, "running", None), Running):
        setattr(copy, "running", Running(min_loop=0))  # noqa: B010 (each layer is to run under its own name)

    def record(path: str, layer: Any, inputs: jax.Array, geometry: Geometry) -> jax.Array:
        work = work_of(layer, inputs, geometry)
        calls.append(Call(path, geometry.kernel_shape, work.output_positions, geometry.groups, work, inputs.dtype))
        return type(layer)._apply(layer, inputs, geometry)

    def record_native(path: str, layer: Any, name: str, *arguments: Any) -> jax.Array:
        outputs = getattr(type(layer), name)(layer, *arguments)
        calls.append(Call(path, layer.kernel_shape, outputs.size // layer.kernel_shape[-1], _groups_of(layer)))
        return outputs

    graph, state = nnx.split(copy)

    def call(state: Any, images: jax.Array) -> Any:
        traced: Any = nnx.merge(graph, state)  # a network may change its variables where it is traced only
        for path, layer in prunable_layers(traced).items():
            # Past nnx, which would take it for a part of the network.
            object.__setattr__(layer, "_apply", partial(record, path, layer))
            for name in filter(partial(hasattr, layer), NATIVE):
                object.__setattr__(layer, name, partial(record_native, path, layer, name))
        return traced(images)

    jax.eval_shape(call, state, jax.ShapeDtypeStruct(inputs, jnp.float32))
    return calls


def _groups_of(layer: Any) -> int:
    contraction = getattr(layer, "contraction", None)
    return getattr(layer, "feature_group_count", 1) if contraction is None else contraction.groups
