"""Losses of a batch of logits and integer labels, one number for each label: an image's, or a token's."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from dctps_jax.precision import in_float32


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return ``-log softmax(logits)[label]``, the loss of training, in float32 or a wider type.

    ``labels`` may also be the probabilities of the classes. The loss is then the mean over the classes, weighted by
    them.
    """
    logits = in_float32(logits)
    if jnp.issubdtype(labels.dtype, jnp.floating):
        chex.assert_equal_shape((logits, labels))
        return optax.losses.softmax_cross_entropy(logits, labels)
    _check_shapes(logits, labels)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def nll_logits(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return ``-logits[label]``.

    The original's scores call PyTorch's ``F.nll_loss`` without a softmax. This loss exists to reproduce them.
    """
    _check_shapes(logits, labels)
    return -jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]


def _check_shapes(logits: jax.Array, labels: jax.Array) -> None:
    # Labels [n, 1] would broadcast to a loss of [n, n].
    chex.assert_rank(logits, labels.ndim + 1)
    chex.assert_equal_shape_prefix((logits, labels), labels.ndim)


LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "cross_entropy": cross_entropy,
    "nll_logits": nll_logits,
}

# A key of LOSSES, or a function of the outputs of a network and its targets.
Loss = str | Callable[[Any, Any], jax.Array]
