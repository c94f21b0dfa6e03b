"""The ways of computing a compact layer: same function, same gradients, different work.

============  ==================================  =====================================================================
method        forward and input gradient          gradient of the values, and of α
============  ==================================  =====================================================================
``plain``     convolution with ``K = α·D + S``    of the whole kernel, by automatic differentiation; the trained part is
                                                  picked from it
``dense``     the same                            at the support only; ``∂α = (⟨Y, ∂Y⟩ − ⟨v, ∂v⟩) / α``
``factored``  D by its factors, S weight by       at the support only; ``∂α = ⟨X, Dᵀ∗∂Y⟩``
              weight
============  ==================================  =====================================================================

The second ∂α holds at every α. The first is ``⟨∂K, D⟩`` since ``⟨Y, ∂Y⟩ = ⟨X, ∂X⟩ = ⟨K, ∂K⟩ = α⟨D, ∂K⟩ + ⟨v, ∂v⟩``; it loses digits as
α vanishes, so that below :data:`MIN_ALPHA` it is computed as ``⟨D∗X, ∂Y⟩``. Which method is used when: :mod:`dctps_jax.plan`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dctps_jax import dct
from dctps_jax.convolution import convolve, convolve_once, gradient_of_inputs
from dctps_jax.factored import offset_convolution, transposed_offset_convolution
from dctps_jax.fusion import materialized, varying_as, zero_after
from dctps_jax.geometry import Geometry
from dctps_jax.sparse_part import (
    add_at,
    convolve_sparse,
    gradient_of_values,
    seen_by,
    transpose_sparse,
    weights_at,
)

# Below this |α| the gradient of α is computed without a division by it.
MIN_ALPHA = 0.01

Residuals = tuple[jax.Array, jax.Array, jax.Array | None, jax.Array, jax.Array | None]


def apply_kernel(
    method: str, geometry: Geometry, inputs: jax.Array, values: jax.Array, alpha: jax.Array | None, support: jax.Array
) -> jax.Array:
    """Return the convolution of ``inputs [batch, *spatial, in]`` with ``α·D + S`` by ``method``, S being ``values`` at ``support``.

    ``alpha`` is None for a layer without offset.
    """
    if method == "plain":
        return convolve(inputs, _kernel(values, alpha, support, geometry).astype(inputs.dtype), geometry)
    values, alpha = varying_as(inputs, values), varying_as(inputs, alpha)
    return _sparse_convolution(method, geometry, inputs, values, alpha, support)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sparse_convolution(
    method: str, geometry: Geometry, inputs: jax.Array, values: jax.Array, alpha: jax.Array | None, support: jax.Array
) -> jax.Array:
    return _forward(method, geometry, inputs, values, alpha, support)[0]


def _forward(
    method: str, geometry: Geometry, inputs: jax.Array, values: jax.Array, alpha: jax.Array | None, support: jax.Array
) -> tuple[jax.Array, Residuals]:
    if method == "factored":
        outputs = convolve_sparse(inputs, values.astype(inputs.dtype), weights_at(support, geometry), geometry)
        if alpha is not None:
            outputs += alpha.astype(inputs.dtype) * offset_convolution(inputs, geometry)
            # Else what it is the sum of would be kept, and added up again wherever it is read.
            outputs = materialized(outputs)
        return outputs, (inputs, values, alpha, support, None)
    outputs = convolve_once(inputs, _kernel(values, alpha, support, geometry).astype(inputs.dtype), geometry)
    # ⟨Y, ∂Y⟩ or ⟨X, ∂X⟩: whichever is the smaller to read.
    kept = outputs if alpha is not None and outputs.size < inputs.size else None
    return outputs, (inputs, values, alpha, support, kept)


def _backward(method: str, geometry: Geometry, saved: Residuals, gradient: jax.Array) -> tuple[Any, ...]:
    inputs, values, alpha, support, outputs = saved
    gradient = materialized(gradient)
    # What weights see is gathered now: with positions known before, the compiler does it in the forward pass, and keeps it.
    weights = weights_at(support + zero_after(gradient), geometry)
    alpha_gradient: Any = None
    if method == "factored":
        to_inputs, seen = transpose_sparse(gradient, values.astype(inputs.dtype), weights, geometry)
        values_gradient = gradient_of_values(seen, inputs, weights.source)[: len(values)]
        if alpha is not None:
            offset = transposed_offset_convolution(gradient, geometry, inputs.shape[1:-1])
            to_inputs += alpha.astype(inputs.dtype) * offset
            alpha_gradient = _inner(inputs, offset)
    else:
        kernel = _kernel(values, alpha, support, geometry).astype(inputs.dtype)
        to_inputs = gradient_of_inputs(gradient, kernel, geometry, inputs)
        values_gradient = gradient_of_values(seen_by(weights, inputs, geometry), gradient, weights.target)[
            : len(values)
        ]
        if alpha is not None:
            total = _inner(inputs, to_inputs) if outputs is None else _inner(outputs, gradient)
            alpha_gradient = lax.cond(
                jnp.abs(alpha) >= MIN_ALPHA,
                lambda: (total - _inner(values, values_gradient)) / alpha,
                lambda: _inner(
                    convolve_once(inputs, _offset(geometry, values.dtype).astype(inputs.dtype), geometry), gradient
                ).astype(jnp.result_type(total, values, alpha)),
            )
    if alpha is not None:
        alpha_gradient = alpha_gradient.astype(alpha.dtype)
    return to_inputs, values_gradient.astype(values.dtype), alpha_gradient, None


_sparse_convolution.defvjp(_forward, _backward)


def _kernel(values: jax.Array, alpha: jax.Array | None, support: jax.Array, geometry: Geometry) -> jax.Array:
    # The values go into the offset, not the offset onto them: one array less to write and to read.
    if alpha is None:
        offset = jnp.zeros(geometry.kernel_shape, values.dtype)
    else:
        offset = alpha.astype(values.dtype) * _offset(geometry, values.dtype)
    return add_at(offset, support, values)


def _offset(geometry: Geometry, dtype: Any) -> jax.Array:
    return dct.offset_kernel(geometry.kernel_shape, dtype)


def _inner(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return ⟨a, b⟩, summed over the leading axes first: one sum over millions of numbers would lose digits."""
    return jnp.sum(jnp.sum(a.astype(b.dtype) * b, axis=range(b.ndim - 1)))
