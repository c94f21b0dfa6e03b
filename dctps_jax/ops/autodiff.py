"""The method "autodiff": one convolution with the whole kernel, differentiated by JAX."""

import dataclasses

import jax

from dctps_jax.ops.convolution import convolve, cost_of_multiply_add
from dctps_jax.ops.costs import Costs
from dctps_jax.ops.method import kernel_of, moving_cost
from dctps_jax.ops.work import Work


@dataclasses.dataclass(frozen=True)
class Autodiff:
    """Build ``K = α·D + S`` and convolve with it. JAX computes the gradient of all of K and picks the trained part."""

    name: str = "autodiff"
    fallback: str = "autodiff"

    def is_possible(self, work: Work) -> bool:
        return True

    def is_lean(self, work: Work) -> bool:
        return True

    def apply(
        self, work: Work, inputs: jax.Array, values: jax.Array, alpha: jax.Array | None, support: jax.Array
    ) -> jax.Array:
        return convolve(inputs, kernel_of(work, values, alpha, support, inputs.dtype), work.geometry)

    def cost(self, work: Work, costs: Costs) -> float:
        forward, gradient = cost_of_multiply_add(work, costs)
        passes = (1 if work.reads_images else 2) * forward + gradient
        making = 2 * work.num_weights * costs.weight  # the kernel and its gradient
        return moving_cost(work, costs) + work.multiply_adds * passes + making
