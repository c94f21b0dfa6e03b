"""The methods of computing a compact layer, by name. ``README.md`` beside this file describes and compares them.

To add a method, write a class as :class:`~dctps_jax.ops.method.Method` describes and add an object to :data:`METHODS`.
"""

import chex
import jax

from dctps_jax.ops.autodiff import Autodiff
from dctps_jax.ops.factored_offset import FactoredOffset
from dctps_jax.ops.gathered import Gathered
from dctps_jax.ops.in_rows import InRows
from dctps_jax.ops.method import Method
from dctps_jax.ops.on_support import OnSupport
from dctps_jax.ops.per_weight import PerWeight
from dctps_jax.ops.transformed_offset import TransformedOffset
from dctps_jax.ops.work import Work

AUTODIFF = Autodiff()
ON_SUPPORT = OnSupport("on_support", Gathered)
ON_SUPPORT_ROWS = OnSupport("on_support_rows", InRows)
PER_WEIGHT = PerWeight("per_weight", ON_SUPPORT.name, FactoredOffset, Gathered)
PER_WEIGHT_ROWS = PerWeight("per_weight_rows", ON_SUPPORT_ROWS.name, FactoredOffset, InRows)
TRANSFORM = PerWeight("transform", ON_SUPPORT.name, TransformedOffset, Gathered)
TRANSFORM_ROWS = PerWeight("transform_rows", ON_SUPPORT_ROWS.name, TransformedOffset, InRows)

METHODS: dict[str, Method] = {
    method.name: method
    for method in (AUTODIFF, ON_SUPPORT, ON_SUPPORT_ROWS, PER_WEIGHT, PER_WEIGHT_ROWS, TRANSFORM, TRANSFORM_ROWS)
}


def possible_methods(work: Work) -> tuple[str, ...]:
    """Return the names of the methods that can compute a layer. "autodiff" and "on_support" always can."""
    return tuple(name for name, method in METHODS.items() if method.is_possible(work))


def apply_kernel(
    method: str, work: Work, inputs: jax.Array, values: jax.Array, alpha: jax.Array | None, support: jax.Array
) -> jax.Array:
    """Return the convolution of ``inputs [batch, *spatial, in]`` with ``α·D + S`` by the method of that name.

    S holds ``values`` at ``support``. D is the offset of ``work``; without an offset ``alpha`` is None.
    """
    chex.assert_shape(inputs, work.inputs)
    chex.assert_equal_shape((values, support))
    return METHODS[method].apply(work, inputs, values, alpha, support)
