"""A network as a function of its kernels, from which scores are computed."""

from collections.abc import Callable, Iterable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dctps_jax.losses import LOSSES, Loss
from dctps_jax.ops.compiler import compiler_options
from dctps_jax.prunable import prunable_layers, unmasked_copy
from dctps_jax.pruning.batches import Batch

Arrays = dict[str, jax.Array]


class ScoredNetwork:
    """A copy of a network without masks, as a function of its kernels. All dicts are by the layers' dotted paths.

    - ``kernels``: the initial trainable kernels S; ``initial_kernels``: the initial effective kernels K₀ = α·D + S.
    - ``graph``, ``state``: the network without its kernels, and all its other arrays.
    - ``loss``: a key of :data:`~dctps_jax.losses.LOSSES`, a loss of the logits divided by ``temperature``; or a
      function of the unchanged outputs and the labels.
    - ``key``: for scores that draw random numbers.

    ``train`` is the mode of BatchNorm.
    """

    def __init__(self, model: nnx.Module, key: jax.Array, *, loss: Loss, temperature: float = 1.0, train: bool = False):
        self.key = key
        self._losses = loss if callable(loss) else _at_temperature(LOSSES[loss], temperature)
        self._compiled: dict[Callable[..., Arrays], Callable[..., Arrays]] = {}
        copy = unmasked_copy(model)
        copy.train() if train else copy.eval()
        layers = prunable_layers(copy)
        self.kernels: Arrays = {path: layer.kernel[...] for path, layer in layers.items()}
        self.initial_kernels: Arrays = {path: layer.effective_kernel() for path, layer in layers.items()}
        for layer in layers.values():  # the kernels come as arguments; scalars stand in for them
            layer.kernel = nnx.data(type(layer.kernel)(jnp.zeros((), layer.kernel[...].dtype)))
        self.graph, state = nnx.split(copy)
        self.state = nnx.to_pure_dict(state)

    def effective_kernel(self, path: str, masks: Arrays) -> jax.Array:
        """Return the effective kernel K = α·D + M⊙S of a layer."""
        return thinned_kernel(self.initial_kernels[path], self.kernels[path], masks[path])

    def sum_gradients(self, masks: Arrays, batches: list[Batch]) -> Arrays:
        """Return ∂L/∂K at the thinned kernels, summed over the batches. Layers are linear in K, so ∂L/∂K = ∂L/∂S."""
        gradient = self.compiled(_gradient)
        return _sum(gradient(self.kernels, masks, self.state, batch) for batch in batches)

    def mean_gradients(self, masks: Arrays, batches: list[Batch]) -> Arrays:
        """Return ∂L/∂K at the thinned kernels, averaged over the batches."""
        return jax.tree.map(lambda gradient: gradient / len(batches), self.sum_gradients(masks, batches))

    def mean_squared_gradients(self, masks: Arrays, batches: list[Batch]) -> Arrays:
        """Return the mean of ``(∂L/∂K)²`` at the thinned kernels, where L is the loss of one example of the batches."""
        total = self.compiled(_sum_of_squares)
        count = sum(len(labels) for _, labels in batches)
        sums = _sum(total(self.kernels, masks, self.state, batch) for batch in batches)
        return jax.tree.map(lambda squares: squares / count, sums)

    def sum_hessian_products(self, masks: Arrays, batches: list[Batch], direction: Arrays) -> Arrays:
        """Return the Hessian of L at the thinned kernels times ``direction``, summed over the batches."""
        product = self.compiled(_hessian_product)
        return _sum(product(self.kernels, masks, self.state, batch, direction) for batch in batches)

    def compiled(self, function: Callable[..., Arrays]) -> Callable[..., Arrays]:
        """Return ``function(network, …)`` for this network, compiled once for all steps.

        Arrays must be arguments of ``function``: the program would hold copies of arrays that it takes from
        ``network``.
        """
        if function not in self._compiled:
            self._compiled[function] = jax.jit(partial(function, self), compiler_options=compiler_options())
        return self._compiled[function]

    def mean_loss(self, kernels: Arrays, state: Any, batch: Batch) -> jax.Array:
        """Return the loss of a batch, as a function of the trainable kernels."""
        images, labels = batch
        model = nnx.merge(self.graph, state)
        for path, layer in prunable_layers(model).items():
            layer.kernel.set_value(kernels[path])
        return self._losses(model(images), labels).mean()


def _at_temperature(loss: Callable[[Any, Any], jax.Array], temperature: float) -> Callable[[Any, Any], jax.Array]:
    return lambda logits, labels: loss(logits / temperature, labels)


def thinned_kernel(initial: jax.Array, kernel: jax.Array, mask: jax.Array) -> jax.Array:
    """Return ``α·D + M⊙S``, given the initial weights ``α·D + S``, the trainable kernel S and the mask M."""
    return initial - jnp.where(mask, 0, kernel)


def _gradient(network: ScoredNetwork, kernels: Arrays, masks: Arrays, state: Any, batch: Batch) -> Arrays:
    return jax.grad(network.mean_loss)(_thin(kernels, masks), state, batch)


def _sum_of_squares(network: ScoredNetwork, kernels: Arrays, masks: Arrays, state: Any, batch: Batch) -> Arrays:
    """Return the sum of the squared gradients of single examples. Only one such gradient exists at a time."""
    thinned = _thin(kernels, masks)

    def add(total: Arrays, example: Batch) -> tuple[Arrays, None]:
        gradients = jax.grad(network.mean_loss)(thinned, state, example)
        return jax.tree.map(lambda squares, gradient: squares + gradient**2, total, gradients), None

    single = jax.tree.map(lambda array: array[:, None], batch)
    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, thinned), single)[0]


def _hessian_product(
    network: ScoredNetwork, kernels: Arrays, masks: Arrays, state: Any, batch: Batch, direction: Arrays
) -> Arrays:
    def gradient(thinned: Arrays) -> Arrays:
        return jax.grad(network.mean_loss)(thinned, state, batch)

    return jax.jvp(gradient, (_thin(kernels, masks),), (direction,))[1]


def _thin(kernels: Arrays, masks: Arrays) -> Arrays:
    """Return the kernels with zeros at the weights that the masks remove."""
    return {path: jnp.where(masks[path], kernel, 0) for path, kernel in kernels.items()}


def _sum(trees: Iterable[Arrays]) -> Arrays:
    """Add trees one by one, so that at most two exist at a time."""
    return reduce(partial(jax.tree.map, jnp.add), trees)
