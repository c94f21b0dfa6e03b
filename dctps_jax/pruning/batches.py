"""The batches that scores are computed from, and their checks."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dctps_jax.arguments import as_array, words
from dctps_jax.errors import UserError, first_line
from dctps_jax.losses import Loss

Batch = tuple[jax.Array, jax.Array]
# A batch for all steps, or a function from the step to its batches.
Batches = Batch | Callable[[int], Sequence[Batch]]


class CheckedBatches:
    """The batches of each step as jax arrays; ``batches(step)`` returns a list of (images, labels).

    A step whose batches do not fit the network and the loss raises :class:`~dctps_jax.errors.UserError`.
    """

    def __init__(self, model: nnx.Module, batches: Batches, loss: Loss = "cross_entropy"):
        self.model, self.batches, self.loss = model, batches, loss
        self._outputs: dict[Any, Any] = {}

    def __call__(self, step: int) -> list[Batch]:
        if not callable(self.batches) or isinstance(self.batches, type):
            return [self._check(self.batches)]
        pairs = self.batches(step)
        if isinstance(pairs, tuple) or not isinstance(pairs, Iterable):
            raise UserError(
                f"the batch function must return a list of (images, labels) pairs, got a {type(pairs).__name__}"
            )
        checked = [self._check(pair) for pair in pairs]
        if not checked:
            raise UserError(f"the batch function returned no batch for step {step}; it must return at least one")
        return checked

    def _check(self, pair: Any) -> Batch:
        what = "inputs and targets" if callable(self.loss) else "images and integer labels"
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            found = f"a {type(pair).__name__} of {len(pair)}" if isinstance(pair, list | tuple) else words(pair)
            raise UserError(f"a batch must be a pair of {what}, but it is {found}; give two arrays")
        needed = "an array; a network of several inputs can be scored in a module that makes them from one array"
        images, labels = (jnp.asarray(as_array("a part of the batch", part, needed)) for part in pair)
        least_axes = 1 if callable(self.loss) else 2
        if images.ndim < least_axes or labels.shape[:1] != images.shape[:1] or not len(images):
            first, second, each = (
                ("inputs", "targets", "both need one item an example")
                if callable(self.loss)
                else ("images", "labels", "it needs one integer label an image")
            )
            raise UserError(
                f"the batch has {first} of shape {images.shape} and {second} of shape {labels.shape}; {each}, and at "
                "least one"
            )
        outputs = self._outputs_for(images)
        if callable(self.loss):
            _check_own_loss(self.loss, outputs, labels)
        else:
            _check_labels(self.loss, outputs, labels)
        return images, labels

    def _outputs_for(self, images: jax.Array) -> Any:
        """Return the shapes of the network's outputs; raise ``UserError`` for images that the network cannot take."""
        kind = images.shape, images.dtype
        if kind not in self._outputs:
            graph, state = nnx.split(self.model)

            def outputs(state: Any, images: jax.Array) -> Any:
                copy: Any = nnx.merge(graph, state)
                copy.eval()  # a new network's Dropout does not know yet whether it drops
                return copy(images)

            try:
                self._outputs[kind] = jax.eval_shape(outputs, state, images)
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"the network cannot take the batch's images of shape {images.shape}: {first_line(error)}"
                ) from error
        return self._outputs[kind]


def _check_labels(loss: str, outputs: Any, labels: jax.Array) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` unless a loss of the package can take the labels."""
    if not hasattr(outputs, "shape"):
        raise UserError(
            f"the network returns a {type(outputs).__name__}, and the loss {loss!r} takes an array of logits; give "
            "loss=a function of the outputs and the labels"
        )
    last = outputs.shape[-1] - 1
    if jnp.issubdtype(labels.dtype, jnp.floating) and loss == "cross_entropy" and labels.shape == outputs.shape:
        return  # probabilities of the classes
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise UserError(
            f"the batch's labels are {labels.dtype} of shape {labels.shape}; they must be integers from 0 to {last}, "
            f"or for cross_entropy probabilities of shape {outputs.shape}; other targets need a loss of your own, "
            "loss=a function of the outputs and the labels"
        )
    if labels.shape != outputs.shape[:-1]:
        raise UserError(
            f"the batch's labels have shape {labels.shape}, and the network's logits {outputs.shape}; it needs one "
            f"integer label an image, or one for each of its logits' positions: {outputs.shape[:-1]}"
        )
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest > last:
        raise UserError(f"the batch's labels reach from {lowest} to {highest}; the network knows 0 to {last}")


def _check_own_loss(loss: Callable[[Any, Any], Any], outputs: Any, labels: jax.Array) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` unless a loss takes outputs and labels and returns real numbers."""
    try:
        found = jax.eval_shape(loss, outputs, labels)
    except (TypeError, ValueError, AssertionError, AttributeError) as error:
        raise UserError(
            f"the loss cannot take the network's outputs and the labels of shape {labels.shape}: {first_line(error)}"
        ) from error
    is_real = hasattr(found, "dtype") and jnp.issubdtype(found.dtype, jnp.floating)
    if not is_real or (found.ndim and found.shape[0] != len(labels)):
        words_of = f"{found.dtype} of shape {found.shape}" if hasattr(found, "dtype") else f"a {type(found).__name__}"
        raise UserError(
            f"the loss returns {words_of}; it must return an array of floats: one, or one for each example, whose mean "
            "is taken"
        )
