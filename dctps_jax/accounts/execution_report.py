"""How each compact layer is computed, and what each method is predicted to take."""

from typing import Any, NamedTuple

from flax import nnx

from dctps_jax.accounts.layer_calls import calls_of
from dctps_jax.aligned import aligned
from dctps_jax.arguments import check_model, is_whole
from dctps_jax.errors import UserError
from dctps_jax.ops.cost_model import choose, predicted_seconds
from dctps_jax.ops.methods import METHODS, possible_methods
from dctps_jax.ops.work import Work
from dctps_jax.prunable import NO_LAYERS, prunable_layers


class Execution(NamedTuple):
    """A use of a compact layer: what it computes, by which method, and the dtype of its inputs."""

    path: str
    work: Work
    method: str
    dtype: Any

    def predicted_seconds(self, method: str) -> float | None:
        """Return the time that a method is predicted to take in a training step; None if it cannot compute this."""
        return predicted_seconds(self.work, method, self.dtype) if method in possible_methods(self.work) else None


class ExecutionReport(NamedTuple):
    """The compact layers in the order of their use. ``str(report)`` is a table, with milliseconds by method."""

    rows: tuple[Execution, ...]

    def __str__(self) -> str:
        if not self.rows:
            return "no layer is compact; masked and dense layers are computed with whole kernels"
        cells: list[tuple[str, ...]] = [("layer", "kernel", "stride", "inputs", "nnz", "method", *METHODS)]
        for row in self.rows:
            seconds = map(row.predicted_seconds, METHODS)
            times = ["" if time is None else f"{1e3 * time:.2f}" for time in seconds]
            geometry = row.work.geometry
            shape, inputs = ("×".join(map(str, sizes)) for sizes in (geometry.kernel_shape, row.work.inputs))
            stride = str(max(geometry.strides, default=1))
            cells.append((row.path, shape, stride, inputs, f"{row.work.nnz:,}", row.method, *times))
        lines = aligned(cells, left=len(cells[0]))
        return "\n".join([*lines, "by method: predicted milliseconds of a training step"])


def execution_report(model: nnx.Module, *inputs: Any, **options: Any) -> ExecutionReport:
    """Return by which method each compact layer is computed in ``model(*inputs, **options)``.

    ``inputs`` are arrays, or ``jax.ShapeDtypeStruct`` objects: nothing is computed. The table has the milliseconds that
    each method is predicted to take in a training step, of those that can compute the layer. A stack of layers has one
    row, with the shapes and times of one of its layers. Left out are layers that are dense or masked, and those that
    use JAX's own operation, see ``dctps_jax/ops/README.md``. The platform is JAX's default backend, unless
    ``dctps_jax.ops.target.tracing_for`` names another.

    Raises :class:`~dctps_jax.errors.UserError` for an object that is not a network, for a network without prunable
    layers, and for the sizes of an array in place of an array.
    """
    check_model(model)
    layers = prunable_layers(model)
    if not layers:
        raise UserError(NO_LAYERS)
    for sizes in inputs:
        if isinstance(sizes, tuple) and sizes and all(map(is_whole, sizes)):
            raise UserError(
                f'an input is {sizes}; for an array of this shape, give jax.ShapeDtypeStruct({sizes}, "float32")'
            )
    rows = (
        Execution(call.path, call.work, choose(layers[call.path].method, call.work, call.dtype), call.dtype)
        for call in calls_of(model, *inputs, **options)
        if call.work is not None and layers[call.path].support is not None
    )
    return ExecutionReport(tuple(rows))
