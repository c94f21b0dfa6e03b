"""How each compact layer is computed, and what each method is predicted to take."""

from typing import Any, NamedTuple

from flax import nnx

from dctps_jax.accounts.layer_calls import calls_of
from dctps_jax.aligned import aligned
from dctps_jax.ops.cost_model import choose, predicted_seconds
from dctps_jax.ops.methods import METHODS, possible_methods
from dctps_jax.ops.work import Work
from dctps_jax.prunable import prunable_layers


class Planned(NamedTuple):
    """A compact layer: what it computes, by which method, and the dtype of its inputs."""

    path: str
    work: Work
    method: str
    dtype: Any


def planned(model: nnx.Module, inputs: tuple[int, ...]) -> list[Planned]:
    """Return the compact layers that a method computes in the order of their use, for inputs of that shape."""
    layers = prunable_layers(model)
    return [
        Planned(call.path, call.work, choose(layers[call.path].method, call.work, call.dtype), call.dtype)
        for call in calls_of(model, inputs)
        if call.work is not None and layers[call.path].support is not None
    ]


def plan_table(rows: list[Planned]) -> str:
    """Return a line for each layer: kernel, inputs, trained weights, method, and predicted milliseconds by method."""
    cells: list[tuple[str, ...]] = [("layer", "kernel", "stride", "inputs", "nnz", "method", *METHODS)]
    for path, work, method, dtype in rows:
        times = [
            f"{1e3 * predicted_seconds(work, name, dtype):.2f}" if name in possible_methods(work) else ""
            for name in METHODS
        ]
        shape, inputs = ("×".join(map(str, sizes)) for sizes in (work.geometry.kernel_shape, work.inputs))
        stride = str(max(work.geometry.strides, default=1))
        cells.append((path, shape, stride, inputs, f"{work.nnz:,}", method, *times))
    return "\n".join(aligned(cells, left=len(cells[0])))
