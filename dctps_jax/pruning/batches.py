"""The batches that scores are computed from, and their checks."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dctps_jax.errors import UserError, first_line

Batch = tuple[jax.Array, jax.Array]
# A batch for all steps, or a function from the step to its batches.
Batches = Batch | Callable[[int], Sequence[Batch]]


class CheckedBatches:
    """The batches of each step as jax arrays; ``batches(step)`` returns a list of (images, labels).

    A step whose batches do not fit the network raises :class:`~dctps_jax.errors.UserError`.
    """

    def __init__(self, model: nnx.Module, batches: Batches):
        self.model = model
        self.batches = batches
        self.num_classes: int | None = None

    def __call__(self, step: int) -> list[Batch]:
        if not callable(self.batches):
            return [self._check(self.batches)]
        pairs = self.batches(step)
        if isinstance(pairs, tuple):
            raise UserError("the batch function must return a list of (images, labels) pairs, got a tuple")
        checked = [self._check(pair) for pair in pairs]
        if not checked:
            raise UserError(f"the batch function returned no batch for step {step}; it must return at least one")
        return checked

    def _check(self, pair: Any) -> Batch:
        try:
            images, labels = (jnp.asarray(part) for part in pair)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"a batch must be a pair of images and integer labels, got {type(pair).__name__}"
            ) from error
        if images.ndim < 2 or labels.shape != images.shape[:1] or not len(labels):
            raise UserError(
                f"the batch has images of shape {images.shape} and labels of shape {labels.shape}; it needs one "
                "integer label an image, and at least one"
            )
        if self.num_classes is None:
            self.num_classes = _count_classes(self.model, images)
        last = self.num_classes - 1
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            raise UserError(f"the batch's labels are {labels.dtype}; they must be integers from 0 to {last}")
        lowest, highest = int(labels.min()), int(labels.max())
        if lowest < 0 or highest > last:
            raise UserError(f"the batch's labels reach from {lowest} to {highest}; the network knows 0 to {last}")
        return images, labels


def _count_classes(model: nnx.Module, images: jax.Array) -> int:
    """Return how many logits the network has for an image; images that it cannot take raise ``UserError``."""
    graph, state = nnx.split(model)
    try:
        logits = jax.eval_shape(lambda state, images: nnx.merge(graph, state)(images), state, images)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the network cannot take the batch's images of shape {images.shape}: {first_line(error)}"
        ) from error
    if not hasattr(logits, "shape"):
        raise UserError(
            f"the network returns a {type(logits).__name__} for the batch's images, and scores need logits alone; give "
            "prune a module that returns the logits of this one"
        )
    return logits.shape[-1]
