"""SynFlow (Tanaka et al. 2020): how much of a positive signal flows through each weight of a network."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dctps_jax.errors import UserError, first_line
from dctps_jax.models.parts import ResidualSum
from dctps_jax.prunable import prunable_layers
from dctps_jax.pruning.scored_network import Arrays, ScoredNetwork, thinned_kernel


def flow_scores(network: ScoredNetwork, masks: Arrays, images: jax.Array) -> Arrays:
    """Return ``|K| ⊙ ∂R/∂|K|``. R sums the outputs for an image of ones, with the absolute values of all arrays.

    The image has the shape of one of ``images``.

    R grows by orders of magnitude from layer to layer and leaves the range of float32 in a deep residual network.
    Therefore every residual sum is divided by its largest entry, which counts as a constant. All paths through the
    network go through the sum, so all scores shrink by the same factor and keep their order.

    Raises :class:`~dctps_jax.errors.UserError` for a network of tokens: there is no token of ones.
    """
    image = jnp.ones((1, *images.shape[1:]))
    try:
        return network.compiled(_flow_scores)(network.kernels, network.initial_kernels, masks, network.state, image)
    except (TypeError, ValueError) as error:
        if not jnp.issubdtype(images.dtype, jnp.integer):
            raise
        raise UserError(
            f"synflow sends an image of ones through the network, which takes {images.dtype} and cannot take ones in "
            f"float32 ({first_line(error)}); for tokens use another score, e.g. snip, or a random method"
        ) from error


def _flow_scores(
    network: ScoredNetwork, kernels: Arrays, initial_kernels: Arrays, masks: Arrays, state: Any, image: jax.Array
) -> Arrays:
    positive_state = jax.tree.map(_absolute, state)
    positive_weights = {
        path: jnp.abs(thinned_kernel(initial_kernels[path], kernels[path], masks[path])) for path in kernels
    }

    def sum_outputs(positive_weights: Arrays) -> jax.Array:
        model = nnx.merge(network.graph, positive_state)
        _rescale_sums(model)
        for path, layer in prunable_layers(model).items():
            # The layer adds its offset to this kernel, so that its effective kernel is |K|.
            layer.kernel.set_value(positive_weights[path] - layer.fixed_part())
        return model(image).sum()

    gradients = jax.grad(sum_outputs)(positive_weights)
    return {path: jnp.abs(gradients[path] * positive_weights[path]) for path in positive_weights}


def _absolute(array: jax.Array) -> jax.Array:
    return array if jnp.issubdtype(array.dtype, jax.dtypes.prng_key) else jnp.abs(array)


class _RescaledSum(ResidualSum):
    """A residual sum divided by its largest entry, which counts as a constant."""

    def __call__(self, branch: jax.Array, shortcut: jax.Array) -> jax.Array:
        total = branch + shortcut
        return total / jax.lax.stop_gradient(jnp.max(total))


def _rescale_sums(model: nnx.Module) -> None:
    for _, module in list(nnx.iter_modules(model)):
        for name, child in list(vars(module).items()):
            if isinstance(child, ResidualSum):
                setattr(module, name, _RescaledSum())
