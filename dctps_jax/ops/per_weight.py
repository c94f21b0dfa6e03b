"""Methods without a kernel: the offset and the trained weights are applied separately.

"per_weight" and "per_weight_rows" apply the offset by its factors, "transform" and "transform_rows" by its fast
transform.
"""

import dataclasses
from typing import Any, NamedTuple

import jax

from dctps_jax.ops.costs import Costs
from dctps_jax.ops.fusion import materialized
from dctps_jax.ops.method import apply_with_gradients, inner_product, moving_cost
from dctps_jax.ops.offset_part import OffsetPart
from dctps_jax.ops.sparse_part import SparsePart
from dctps_jax.ops.work import Work


class Residuals(NamedTuple):
    """What the gradients need."""

    inputs: jax.Array
    values: jax.Array
    alpha: jax.Array | None
    support: jax.Array
    kept: jax.Array | None  # by the sparse part


@dataclasses.dataclass(frozen=True)
class PerWeight:
    """Convolve with α·D by an ``offset_part``, and add ``S∗X`` weight by weight. Build neither K nor ∂K.

    This needs strides of 1, one group, and an offset that the ``offset_part`` can compute. The gradient of α is ``⟨X,
    Dᵀ∗∂Y⟩`` at every α: ``Dᵀ∗∂Y`` is a part of the gradient of the inputs anyway.
    """

    name: str
    fallback: str
    offset_part: type[OffsetPart]
    sparse_part: type[SparsePart]

    apply = apply_with_gradients

    def is_possible(self, work: Work) -> bool:
        geometry = work.geometry
        if geometry.groups > 1 or geometry.largest_stride > 1 or work.output_positions == 0:
            return False
        return self.offset_part.is_possible(work)

    def is_lean(self, work: Work) -> bool:
        return self.sparse_part.is_lean(work)

    def forward(
        self, work: Work, inputs: jax.Array, values: jax.Array, alpha: jax.Array | None, support: jax.Array
    ) -> tuple[jax.Array, Residuals]:
        sparse_part = self.sparse_part(work, support)
        kept = sparse_part.kept(inputs)
        outputs = sparse_part.convolve(inputs, values, kept)
        if alpha is not None:
            outputs += alpha.astype(inputs.dtype) * self.offset_part.convolve(work, inputs)
            # Without `materialized`, XLA (JAX 0.10.2) keeps the terms of this sum for the backward pass, and adds them
            # again in every operation that reads the outputs. `fusion.py` has the figures and the test.
            outputs = materialized(outputs)
        return outputs, Residuals(inputs, values, alpha, support, kept)

    def gradients(self, work: Work, residuals: Residuals, gradient: jax.Array) -> tuple[Any, Any, Any]:
        inputs, values, alpha, support, kept = residuals
        gradient = materialized(gradient)  # else XLA computes it again at each use, see fusion.py
        grad_inputs, grad_values = self.sparse_part(work, support).gradients(inputs, gradient, values, kept)
        grad_alpha = None
        if alpha is not None:
            by_offset = self.offset_part.transposed(work, gradient)
            grad_inputs += alpha.astype(inputs.dtype) * by_offset
            grad_alpha = inner_product(inputs, by_offset).astype(alpha.dtype)
        return grad_inputs, grad_values.astype(values.dtype), grad_alpha

    def cost(self, work: Work, costs: Costs) -> float:
        of_offset = 0.0 if work.offset is None else self.offset_part.cost(work, costs)
        sparse = self.sparse_part.product_cost(work, costs) + self.sparse_part.gradient_cost(work, costs)
        return moving_cost(work, costs) + sparse + of_offset
