"""What each prunable layer of a network has to compute for inputs of a shape, by an abstract call."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dctps_jax.kernels import work_of
from dctps_jax.models.blocks import Running
from dctps_jax.ops.geometry import Geometry
from dctps_jax.ops.work import Work
from dctps_jax.prunable import prunable_layers


def works_of(model: nnx.Module, inputs: tuple[int, ...]) -> list[tuple[str, Work, Any]]:
    """Return (path, work, dtype of the inputs) of the prunable layers in the order of their use.

    ``inputs`` is the shape of the network's inputs. Nothing is computed. The ``nnz`` of a layer that is not compact is
    the size of its kernel.
    """
    rows: list[tuple[str, Work, Any]] = []
    copy = nnx.clone(model)
    copy.eval()
    if isinstance(getattr(copy, "running", None), Running):
        setattr(copy, "running", Running(min_loop=0))  # noqa: B010 (each layer is to run under its own name)

    def record(path: str, layer: Any, inputs: jax.Array, geometry: Geometry) -> jax.Array:
        rows.append((path, work_of(layer, inputs, geometry), inputs.dtype))
        return type(layer)._apply(layer, inputs, geometry)

    graph, state = nnx.split(copy)

    def call(state: Any, images: jax.Array) -> Any:
        traced: Any = nnx.merge(graph, state)  # a network may change its variables where it is traced only
        for path, layer in prunable_layers(traced).items():
            # Past nnx, which would take it for a part of the network.
            object.__setattr__(layer, "_apply", partial(record, path, layer))
        return traced(images)

    jax.eval_shape(call, state, jax.ShapeDtypeStruct(inputs, jnp.float32))
    return rows
