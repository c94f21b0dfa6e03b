"""How each compact layer is computed, and what the plan expects it to cost."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dctps_jax import plan
from dctps_jax.analysis.aligned import aligned
from dctps_jax.geometry import Geometry
from dctps_jax.layers import prunable_layers
from dctps_jax.models.blocks import Running


def planned(model: nnx.Module, inputs: tuple[int, ...]) -> list[tuple[str, plan.Work, str]]:
    """Return (path, work, method) of the compact layers in the order of their use, for inputs of that shape.

    Nothing is computed.
    """
    rows: list[tuple[str, plan.Work, str]] = []
    copy = nnx.clone(model)
    copy.eval()
    if hasattr(copy, "running"):
        setattr(copy, "running", Running(min_loop=0))  # noqa: B010 (each layer is to run under its own name)

    def record(path: str, layer: Any, inputs: jax.Array, geometry: Geometry) -> jax.Array:
        if layer.support is not None:
            work = layer.work(inputs, geometry)
            rows.append((path, work, plan.choose(layer.method, work, inputs.dtype)))
        return type(layer)._apply(layer, inputs, geometry)

    for path, layer in prunable_layers(copy).items():
        # Past nnx, which would take it for a part of the network.
        object.__setattr__(layer, "_apply", partial(record, path, layer))
    jax.eval_shape(copy, jax.ShapeDtypeStruct(inputs, jnp.float32))
    return rows


def plan_table(rows: list[tuple[str, plan.Work, str]]) -> str:
    """Return one aligned line a layer: kernel, inputs, trained weights, method, predicted milliseconds of one core."""
    cells: list[tuple[str, ...]] = [("layer", "kernel", "stride", "inputs", "nnz", "method", *plan.METHODS)]
    for path, work, method in rows:
        times = [
            f"{1e3 * plan.predicted_seconds(work, name):.2f}" if name in plan.possible_methods(work) else ""
            for name in plan.METHODS
        ]
        shape, inputs = ("×".join(map(str, sizes)) for sizes in (work.geometry.kernel_shape, work.inputs))
        stride = str(max(work.geometry.strides, default=1))
        cells.append((path, shape, stride, inputs, f"{work.nnz:,}", method, *times))
    return "\n".join(aligned(cells, left=len(cells[0])))
