"""BatchNorm and its ReLU as one operation, whose gradient reads and writes few arrays."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from jax import lax

from dctps_jax.ops.fusion import materialized, varying_alike
from dctps_jax.ops.target import PORTABLE, on_cpu, platform


class BatchNorm(nnx.BatchNorm):
    """``nnx.BatchNorm`` (Ioffe & Szegedy 2015) that can apply the ReLU behind it.

    ``relu=True`` in a call returns ``max(0, BatchNorm(x))``. In training over the last axis the gradient is written by
    hand. It keeps only the inputs and normalises them again. Statistics are computed in float32 at least. With any
    other setting, for example a ``mask``, ``nnx.BatchNorm`` does the work.
    """

    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
        relu: bool = False,
    ) -> jax.Array:
        if use_running_average is None:
            use_running_average = self.use_running_average
        by_hand = self.use_fast_variance and self.axis in (-1, x.ndim - 1) and x.shape[-1] == self.num_features
        by_hand = by_hand and self.axis_index_groups is None and mask is None and platform() != PORTABLE
        if use_running_average is not False or not by_hand or self.promote_dtype is not dtypes.promote_dtype:
            outputs = super().__call__(x, use_running_average, mask=mask)
            return nnx.relu(outputs) if relu else outputs
        scale = None if self.scale is None else self.scale[...]
        bias = None if self.bias is None else self.bias[...]
        given = [value for value in (x, self.mean[...], scale, bias) if value is not None]
        dtype: Any = jnp.result_type(*given) if self.dtype is None else self.dtype
        working = jnp.promote_types(dtype, jnp.float32)
        scale = jnp.ones(x.shape[-1], working) if scale is None else scale.astype(working)
        bias = jnp.zeros(x.shape[-1], working) if bias is None else bias.astype(working)
        x, scale, bias = varying_alike(x, scale, bias)
        results: Any = _normalize(relu, self.epsilon, self.axis_name, dtype, x.astype(dtype), scale, bias)
        outputs, mean, var = results
        for stored, new in ((self.mean, mean), (self.var, var)):
            new = lax.stop_gradient(new).astype(stored[...].dtype)
            # `set_value`, not an update in place, which would write the whole array once more.
            stored.set_value(self.momentum * stored[...] + (1 - self.momentum) * new)
        return outputs


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _normalize(
    relu: bool, epsilon: float, axis_name: str | None, dtype: Any, x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the normalised ``x``, its mean and its variance. Mean and variance have no gradient."""
    return _forward(relu, epsilon, axis_name, dtype, x, scale, bias)[0]


def _forward(relu, epsilon, axis_name, dtype, x, scale, bias):
    wide = x.astype(scale.dtype)
    axes = tuple(range(x.ndim - 1))
    mean, square = jnp.mean(wide, axes), jnp.mean(wide * wide, axes)
    if axis_name is not None:
        mean, square = lax.pmean((mean, square), axis_name)
    var = jnp.maximum(0, square - mean * mean)
    inverse_std = lax.rsqrt(var + epsilon)
    outputs = _affine(wide, mean, inverse_std, scale, bias)
    if relu:
        # Stored: otherwise XLA (JAX 0.10.2) normalises again in every operation that reads it, see ops/fusion.py.
        outputs = materialized(jnp.maximum(outputs, 0))
    return (outputs.astype(dtype), mean, var), (x, mean, inverse_std, scale, bias)


def _affine(x, mean, inverse_std, scale, bias):
    rows = (1,) * (x.ndim - 1) + (-1,)
    return (x - mean.reshape(rows)) * (inverse_std * scale).reshape(rows) + bias.reshape(rows)


def _backward(relu, epsilon, axis_name, dtype, saved, gradients):
    """Return the gradients of x, scale and bias.

    With ``x̂`` the normalised inputs and g the gradient of ``scale·x̂ + bias``:
    ``∂x = scale/σ (g − mean(g) − x̂ mean(g x̂))``.
    """
    x, mean, inverse_std, scale, bias = saved
    axes, rows = tuple(range(x.ndim - 1)), (1,) * (x.ndim - 1) + (-1,)
    wide, gradient = x.astype(scale.dtype), gradients[0].astype(scale.dtype)
    if relu:
        gradient = jnp.where(_affine(wide, mean, inverse_std, scale, bias) > 0, gradient, 0)
    to_bias = jnp.sum(gradient, axes)
    if on_cpu():
        # For the sum of g·(x - mean) XLA (JAX 0.10.2) stores x - mean in the forward pass, one array more for each
        # layer. Where the means of x and g are large, two sums cost some digits, as the fast variance does:
        # `tests/models/test_normalization.py`.
        products = jnp.sum(gradient * wide, axes) - mean * to_bias
    else:
        products = jnp.sum(gradient * (wide - mean.reshape(rows)), axes)
    to_scale = products * inverse_std
    mean_gradient, mean_product = to_bias, to_scale
    if axis_name is not None:
        mean_gradient, mean_product = lax.pmean((to_bias, to_scale), axis_name)
    count = x.size // x.shape[-1]
    slope = scale * inverse_std
    to_x = (
        gradient * slope.reshape(rows)
        - (wide - mean.reshape(rows)) * (slope * inverse_std * mean_product / count).reshape(rows)
        - (slope * mean_gradient / count).reshape(rows)
    )
    return materialized(to_x.astype(x.dtype)), to_scale, to_bias


_normalize.defvjp(_forward, _backward)
