"""How each compact layer is computed, and what the plan expects it to cost."""

from flax import nnx

from dctps_jax import plan
from dctps_jax.accounts.aligned import aligned
from dctps_jax.accounts.works import works_of
from dctps_jax.layers import prunable_layers


def planned(model: nnx.Module, inputs: tuple[int, ...]) -> list[tuple[str, plan.Work, str]]:
    """Return (path, work, method) of the compact layers in the order of their use, for inputs of that shape."""
    layers = prunable_layers(model)
    return [
        (path, work, plan.choose(layers[path].method, work, dtype))
        for path, work, dtype in works_of(model, inputs)
        if layers[path].support is not None
    ]


def plan_table(rows: list[tuple[str, plan.Work, str]]) -> str:
    """Return one aligned line a layer: kernel, inputs, trained weights, method, and what each was predicted to take in milliseconds."""
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
