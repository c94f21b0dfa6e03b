"""The ways of computing a compact layer: same function, same gradients, different work.

=================  ==================================  ================================================================
method             forward and input gradient          gradient of the values, and of α
=================  ==================================  ================================================================
``plain``          convolution with ``K = α·D + S``    of the whole kernel, by automatic differentiation; the trained
                                                       part is picked from it
``dense``          the same                            at the support only; ``∂α = (⟨Y, ∂Y⟩ − ⟨v, ∂v⟩) / α``
``factored``       D by its factors, S weight by       at the support only; ``∂α = ⟨X, Dᵀ∗∂Y⟩``
                   weight
``dense_rows``,    as these, with the weights gone through one after the other on activations in rows, rather than all
``factored_rows``  at once on gathered channels (:mod:`dctps_jax.gathered`)
=================  ==================================  ================================================================

The second ∂α holds at every α. The first is ``⟨∂K, D⟩`` since ``⟨Y, ∂Y⟩ = ⟨X, ∂X⟩ = ⟨K, ∂K⟩ = α⟨D, ∂K⟩ + ⟨v, ∂v⟩``; it loses digits as
α vanishes, so that below :data:`MIN_ALPHA` it is computed as ``⟨D∗X, ∂Y⟩``. Which method is used when: :mod:`dctps_jax.plan`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dctps_jax.convolution import convolve, convolve_once, gradient_of_inputs
from dctps_jax.factored import offset_convolution, transposed_offset_convolution
from dctps_jax.fusion import materialized, varying_as
from dctps_jax.gathered import Gathered
from dctps_jax.offsets import Factors
from dctps_jax.plan import Work
from dctps_jax.sparse_part import InRows, add_at

FACTORED = ("factored", "factored_rows")
IN_ROWS = ("dense_rows", "factored_rows")
# Below this |α| the gradient of α is computed without a division by it.
MIN_ALPHA = 0.01

Residuals = tuple[jax.Array, jax.Array, jax.Array | None, jax.Array, jax.Array | None]


def apply_kernel(
    method: str, work: Work, inputs: jax.Array, values: jax.Array, alpha: jax.Array | None, support: jax.Array
) -> jax.Array:
    """Return the convolution of ``inputs [batch, *spatial, in]`` with ``α·D + S`` by ``method``, S being ``values`` at ``support``.

    D is that of ``work``; ``alpha`` is None where it has none.
    """
    if method == "plain":
        return convolve(inputs, _kernel(work, values, alpha, support).astype(inputs.dtype), work.geometry)
    values, alpha = varying_as(inputs, values), varying_as(inputs, alpha)
    return _sparse_convolution(method, work, inputs, values, alpha, support)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sparse_convolution(
    method: str, work: Work, inputs: jax.Array, values: jax.Array, alpha: jax.Array | None, support: jax.Array
) -> jax.Array:
    return _forward(method, work, inputs, values, alpha, support)[0]


def _forward(
    method: str, work: Work, inputs: jax.Array, values: jax.Array, alpha: jax.Array | None, support: jax.Array
) -> tuple[jax.Array, Residuals]:
    if method in FACTORED:
        outputs = _sparse_part(method, support, work).convolve(inputs, values)
        if alpha is not None:
            outputs += alpha.astype(inputs.dtype) * offset_convolution(inputs, work.geometry, _factors(work))
            # Else what it is the sum of would be kept, and added up again wherever it is read.
            outputs = materialized(outputs)
        return outputs, (inputs, values, alpha, support, None)
    outputs = convolve_once(inputs, _kernel(work, values, alpha, support).astype(inputs.dtype), work.geometry)
    # ⟨Y, ∂Y⟩ or ⟨X, ∂X⟩: whichever is the smaller to read.
    kept = outputs if alpha is not None and outputs.size < inputs.size else None
    return outputs, (inputs, values, alpha, support, kept)


def _backward(method: str, work: Work, saved: Residuals, gradient: jax.Array) -> tuple[Any, ...]:
    inputs, values, alpha, support, outputs = saved
    gradient = materialized(gradient)
    sparse_part = _sparse_part(method, support, work)
    to_inputs: Any = None
    alpha_gradient: Any = None
    if method in FACTORED:
        to_inputs, values_gradient = sparse_part.gradients(inputs, gradient, values)
        if alpha is not None:
            offset = transposed_offset_convolution(gradient, work.geometry, _factors(work), inputs.shape[1:-1])
            to_inputs += alpha.astype(inputs.dtype) * offset
            alpha_gradient = _inner(inputs, offset)
    else:
        kernel = _kernel(work, values, alpha, support).astype(inputs.dtype)
        to_inputs = gradient_of_inputs(gradient, kernel, work.geometry, inputs)
        _, values_gradient = sparse_part.gradients(inputs, gradient)
        if alpha is not None:
            total = _inner(inputs, to_inputs) if outputs is None else _inner(outputs, gradient)
            alpha_gradient = lax.cond(
                _is_large(alpha),
                lambda: (total - _inner(values, values_gradient)) / alpha,
                lambda: _inner(
                    convolve_once(inputs, work.offset_kernel(values.dtype).astype(inputs.dtype), work.geometry),
                    gradient,
                ).astype(jnp.result_type(total, values, alpha)),
            )
    if alpha is not None:
        alpha_gradient = alpha_gradient.astype(alpha.dtype)
    return to_inputs, values_gradient.astype(values.dtype), alpha_gradient, None


_sparse_convolution.defvjp(_forward, _backward)


def _factors(work: Work) -> Factors:
    factors = work.factors
    assert factors is not None
    return factors


def _sparse_part(method: str, support: jax.Array, work: Work) -> Gathered | InRows:
    return InRows(support, work.geometry, work.inputs) if method in IN_ROWS else Gathered(support, work.geometry)


@jax.custom_batching.custom_vmap
def _is_large(alpha: jax.Array) -> jax.Array:
    return jnp.abs(alpha) >= MIN_ALPHA


@_is_large.def_vmap
def _all_are_large(axis_size: int, is_batched: list[bool], alpha: jax.Array) -> tuple[jax.Array, bool]:
    """Decide for all seeds of a program at once: with a decision for each both branches would always be computed."""
    return jnp.all(jnp.abs(alpha) >= MIN_ALPHA), False


def _kernel(work: Work, values: jax.Array, alpha: jax.Array | None, support: jax.Array) -> jax.Array:
    # The values go into the offset, not the offset onto them: one array less to write and to read.
    if alpha is None:
        offset = jnp.zeros(work.geometry.kernel_shape, values.dtype)
    else:
        offset = alpha.astype(values.dtype) * work.offset_kernel(values.dtype)
    return add_at(offset, support, values)


def _inner(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return ⟨a, b⟩, summed over the leading axes first: one sum over millions of numbers would lose digits."""
    return jnp.sum(jnp.sum(a.astype(b.dtype) * b, axis=range(b.ndim - 1)))
