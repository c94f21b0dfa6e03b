"""What a conversion made of each module of a network."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from flax import nnx

from dctps_jax.aligned import aligned
from dctps_jax.arguments import check_has_arrays, check_model
from dctps_jax.errors import UserError
from dctps_jax.kernels import Frozen, FrozenAlpha, KernelLayer
from dctps_jax.layer_kinds import COUNTERPARTS, has_counterpart


class Row(NamedTuple):
    """What became of the parameters of one module: how many it had, how many are trained, and why."""

    path: str
    kind: str
    parameters: int
    trained: int
    outcome: str


class Report(NamedTuple):
    """What a conversion changed, what it left, and why. ``str(report)`` is a table."""

    rows: tuple[Row, ...]

    @property
    def density(self) -> float:
        """Trained parameters ÷ all parameters of the network; biases, normalisation and α are among both."""
        return sum(row.trained for row in self.rows) / sum(row.parameters for row in self.rows)

    def __str__(self) -> str:
        cells = [(row.path or "(the network)", row.kind, f"{row.trained:,} of {row.parameters:,}") for row in self.rows]
        lines = [f"{line}  {row.outcome}" for line, row in zip(aligned(cells, left=2), self.rows, strict=True)]
        trained, parameters = (sum(getattr(row, name) for row in self.rows) for name in ("trained", "parameters"))
        lines.append(f"{trained:,} of {parameters:,} parameters are trained, {100 * self.density:.4g} %")
        return "\n".join(lines)


def conversion_report(model: nnx.Module) -> Report:
    """Return for each module with parameters whether :func:`convert` converted it, and why.

    The α of a layer is one of its parameters, and counts as trained if it is trainable.

    Raises :class:`~dctps_jax.errors.UserError` for a network without parameters.
    """
    check_model(model)
    check_has_arrays("conversion_report", model)
    parameters: dict[tuple[Any, ...], dict[str, nnx.Variable]] = {}
    for place, variable in nnx.to_flat_state(nnx.state(model, (nnx.Param, Frozen, FrozenAlpha))):
        parameters.setdefault(tuple(place[:-1]), {})[str(place[-1])] = variable
    if not any(variable[...].size for found in parameters.values() for variable in found.values()):
        raise UserError("the network has no parameters, so there is nothing to report; give one with layers")
    modules = dict(nnx.iter_modules(model))
    loras = [module for module in modules.values() if isinstance(module, nnx.LoRA)]
    wrapped = {id(module) for lora in loras for _, module in nnx.iter_modules(lora)}
    has_own = any(isinstance(module, KernelLayer) for module in modules.values())
    unconverted = "left: excluded" if has_own else "not converted"
    rows = (_row(place, modules.get(place), found, wrapped, unconverted) for place, found in parameters.items())
    return Report(tuple(rows))


def _row(
    place: tuple[Any, ...], module: Any, variables: Mapping[str, nnx.Variable], wrapped: set[int], unconverted: str
) -> Row:
    path, kind = ".".join(map(str, place)), "parameters" if module is None else type(module).__name__
    kernels = ("kernel", "base") if isinstance(module, KernelLayer) else ()
    others = [variable for name, variable in variables.items() if name not in kernels]
    total = sum(variable[...].size for variable in others)
    trained = sum(variable[...].size for variable in others if isinstance(variable, nnx.Param))
    if isinstance(module, KernelLayer):
        weights = math.prod((*module.stack, *module.kernel_shape))
        nnz = weights if module.mask is None else int(module.mask[...].sum())
        nnz = nnz if module.support is None else module.support[...].size
        kernel = "K = S" if module.offset is None else "K = α·D + M⊙S"
        kernel = kernel if module.base is None else "K = W₀ + M⊙S"
        return Row(path, kind, weights + total, nnz + trained, f"{kernel}, {nnz:,} weights")
    if id(module) in wrapped or isinstance(module, nnx.LoRA | nnx.LoRALinear):
        outcome = "left: LoRA"
    elif type(module) is nnx.Embed:
        outcome = "left: embeddings are converted with embeddings=True"
    elif has_counterpart(module):
        outcome = unconverted
    elif type(module) is nnx.Einsum:
        outcome = "left: this einsum is no product with a matrix"
    elif isinstance(module, tuple(COUNTERPARTS)):
        outcome = "left: a subclass may compute something else"
    elif "kernel" in variables:
        outcome = "left: convert does not know this kind of layer"
    else:
        outcome = "left: it has no kernel"
    if trained == 0:
        outcome = "frozen"
    return Row(path, kind, total, trained, outcome)
