"""The methods "on_support" and "on_support_rows": convolve with the whole kernel, take its gradient at the support."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dctps_jax.ops.convolution import cost_of_multiply_add, gradient_of_inputs, plain_convolution
from dctps_jax.ops.costs import Costs
from dctps_jax.ops.fusion import materialized
from dctps_jax.ops.method import apply_with_gradients, inner_product, kernel_of, moving_cost
from dctps_jax.ops.sparse_part import SparsePart
from dctps_jax.ops.work import Work

# Where |α| is smaller, the gradient of α is computed without dividing by α.
MIN_ALPHA = 0.01


class Residuals(NamedTuple):
    """What the gradients need. ``outputs`` is None unless ⟨Y, ∂Y⟩ is taken instead of ⟨X, ∂X⟩."""

    inputs: jax.Array
    values: jax.Array
    alpha: jax.Array | None
    support: jax.Array
    outputs: jax.Array | None


@dataclasses.dataclass(frozen=True)
class OnSupport:
    """Build ``K = α·D + S`` and convolve with it, forward and to the inputs. Compute ``∂v`` at the support only.

    The gradient of α is ``⟨∂K, D⟩``. It follows without ∂K from ``⟨Y, ∂Y⟩ = ⟨X, ∂X⟩ = ⟨K, ∂K⟩ = α⟨D, ∂K⟩ + ⟨v, ∂v⟩``::

        ∂α = (⟨Y, ∂Y⟩ − ⟨v, ∂v⟩) / α

    ``⟨X, ∂X⟩`` is computed instead of ``⟨Y, ∂Y⟩`` if it reads less. The quotient loses digits as α vanishes. So for
    ``|α| < MIN_ALPHA`` the gradient is ``∂α = ⟨D∗X, ∂Y⟩``, at the cost of a convolution.
    """

    name: str
    sparse_part: type[SparsePart]

    apply = apply_with_gradients

    @property
    def fallback(self) -> str:
        return self.name

    def is_possible(self, work: Work) -> bool:
        return True

    def is_lean(self, work: Work) -> bool:
        return self.sparse_part.is_lean(work)

    def forward(
        self, work: Work, inputs: jax.Array, values: jax.Array, alpha: jax.Array | None, support: jax.Array
    ) -> tuple[jax.Array, Residuals]:
        kernel = kernel_of(work, values, alpha, support, inputs.dtype)
        outputs = plain_convolution(inputs, kernel, work.geometry)
        # ⟨Y, ∂Y⟩ or ⟨X, ∂X⟩: whichever reads less.
        kept = outputs if alpha is not None and outputs.size < inputs.size else None
        return outputs, Residuals(inputs, values, alpha, support, kept)

    def gradients(self, work: Work, residuals: Residuals, gradient: jax.Array) -> tuple[Any, Any, Any]:
        inputs, values, alpha, support, outputs = residuals
        gradient = materialized(gradient)  # else XLA computes it again at each use, see fusion.py
        sparse_part = self.sparse_part(work, support)
        kernel = kernel_of(work, values, alpha, support, inputs.dtype)
        grad_inputs = gradient_of_inputs(gradient, kernel, work.geometry, inputs)
        grad_values = sparse_part.gradient_of_values(inputs, gradient)
        grad_alpha = None
        if alpha is not None:
            total = inner_product(inputs, grad_inputs) if outputs is None else inner_product(outputs, gradient)

            def by_difference() -> jax.Array:
                return (total - inner_product(values, grad_values)) / alpha

            def by_convolution() -> jax.Array:
                offset = work.offset_kernel(values.dtype).astype(inputs.dtype)
                direct = inner_product(plain_convolution(inputs, offset, work.geometry), gradient)
                return direct.astype(jnp.result_type(total, values, alpha))

            grad_alpha = lax.cond(jnp.abs(alpha) >= MIN_ALPHA, by_difference, by_convolution).astype(alpha.dtype)
        return grad_inputs, grad_values.astype(values.dtype), grad_alpha

    def cost(self, work: Work, costs: Costs) -> float:
        forward, _ = cost_of_multiply_add(work, costs)
        # Images need no gradient, unless ∂α uses ⟨X, ∂X⟩.
        to_images = work.offset is not None and work.output_size >= work.input_size
        passes = (1 if work.reads_images and not to_images else 2) * forward
        inner = 0 if work.offset is None else 2 * min(work.input_size, work.output_size) * costs.move
        nanoseconds = moving_cost(work, costs) + self.sparse_part.gradient_cost(work, costs)
        return nanoseconds + work.multiply_adds * passes + work.num_weights * costs.weight + inner
