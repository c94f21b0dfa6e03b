"""The convolution of a layer's inputs with its offset D, apart from its trained weights, without making D."""

from typing import Protocol

import jax

from dctps_jax.ops.costs import Costs
from dctps_jax.ops.work import Work


class OffsetPart(Protocol):
    """One way of computing the offset's part of a layer with strides of 1 and one group."""

    @staticmethod
    def is_possible(work: Work) -> bool:
        """Return whether it can compute the offset's part of the layer. No offset means nothing to compute."""
        ...

    @staticmethod
    def convolve(work: Work, inputs: jax.Array) -> jax.Array:
        """Return ``D∗inputs``."""
        ...

    @staticmethod
    def transposed(work: Work, outputs: jax.Array) -> jax.Array:
        """Return ``Dᵀ∗outputs``: the gradient of the inputs where ``outputs`` is the gradient of ``D∗inputs``."""
        ...

    @staticmethod
    def cost(work: Work, costs: Costs) -> float:
        """Return the nanoseconds of both functions and of the inner product for the gradient of α."""
        ...
