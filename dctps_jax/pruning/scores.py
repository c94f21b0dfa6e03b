"""Scores of weights at initialisation: pure functions of the initial parameters and a batch, the highest are kept.

All scores are of the effective kernel K, which for a layer without offset is the trainable kernel itself, and for a
layer with one ``α·D + S``: how much a trained change of K at that position matters to the network that the offset
makes. (The original scores plain layers only.) Layers are linear in K, so that ∂L/∂K = ∂L/∂S.

Iterations thin the trainable part out, ``K = α·D + M⊙S``; with an offset S starts at zero, so that the scores stay the
same from step to step.

============  ==========================  ==========  ===========  =====================================================
method        score                       BatchNorm   loss         source
============  ==========================  ==========  ===========  =====================================================
``snip``      ``|K ⊙ ∂L/∂K|``             eval        training     Lee et al. 2019
``iter_snip`` ``|K ⊙ ∂L/∂K|``, thinned K  train       training     de Jorge et al. 2021 (the original's "FORCE")
``force``     ``|K₀ ⊙ ∂L/∂K|``            train       training     de Jorge et al. 2021: K₀ dense, gradient at the thinned K
``grasp_it``  ``(∂L/∂K)²``                train       training     de Jorge et al. 2021
``grasp``     ``K ⊙ H ∂L/∂K``             eval        logits/200   Wang et al. 2020; the sign that keeps the highest
``synflow``   ``|K| ⊙ ∂R/∂|K|``           eval        none         Tanaka et al. 2020: R sums the outputs for an input of ones
``magnitude`` ``|K|``
``random``    uniform in [0, 1)
============  ==========================  ==========  ===========  =====================================================

The loss is the mean cross-entropy of training; ``nll_logits``, minus the mean logit of the right class, is what the
original computes (``F.nll_loss`` without a softmax) and only there to reproduce it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dctps_jax.layers import ResidualSum, prunable_layers
from dctps_jax.ops.compiler import compiler_options

Arrays = dict[str, jax.Array]
Batch = tuple[jax.Array, jax.Array]

GRASP_TEMPERATURE = 200


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the cross-entropy of each example, in float32 or wider whatever the network computes in."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def mean_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return cross_entropy(logits, labels).mean()


def nll_logits(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return -jnp.take_along_axis(logits, labels[:, None], axis=1).mean()


LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "cross_entropy": mean_cross_entropy,
    "nll_logits": nll_logits,
}


class Scored(NamedTuple):
    """A network as a pure function of its trainable kernels: everything that a score is computed from.

    ``kernels`` are the initial S and ``effective`` the initial K by dotted path; ``state`` holds all other arrays.
    """

    graph: nnx.GraphDef
    state: Any
    kernels: Arrays
    effective: Arrays

    def logits(self, kernels: Arrays, state: Any, images: jax.Array) -> jax.Array:
        model = nnx.merge(self.graph, state)
        for path, layer in prunable_layers(model).items():
            layer.kernel.set_value(kernels[path])
        return model(images)


def scored(model: nnx.Module, *, train: bool) -> Scored:
    """Return ``model`` as a function of its kernels, with BatchNorm in the given mode and no masks; it is unchanged."""
    model = unmasked_copy(model)
    model.train() if train else model.eval()
    layers = prunable_layers(model)
    kernels = {path: layer.kernel[...] for path, layer in layers.items()}
    effective = {path: layer.effective_kernel() for path, layer in layers.items()}
    for layer in layers.values():  # the kernels come as arguments; their places stay empty
        layer.kernel = nnx.data(type(layer.kernel)(jnp.zeros((), layer.kernel[...].dtype)))
    graph, state = nnx.split(model)
    return Scored(graph, nnx.to_pure_dict(state), kernels, effective)


def unmasked_copy(model: nnx.Module) -> nnx.Module:
    """Return a copy of ``model`` that shares its arrays, has no masks, and computes in its parameters' precision."""
    graph, state = nnx.split(model)
    copy = nnx.merge(graph, nnx.to_pure_dict(state))
    for layer in prunable_layers(copy).values():
        layer.set_dense()
    for _, module in nnx.iter_modules(copy):
        if hasattr(module, "dtype"):
            setattr(module, "dtype", None)  # noqa: B010 (the type of modules does not know it)
    return copy


def thin(kernels: Arrays, masks: Arrays) -> Arrays:
    """Return the kernels with what ``masks`` remove set to zero."""
    return {path: jnp.where(masks[path], kernel, 0) for path, kernel in kernels.items()}


def gradient_scores(network: Scored, formula: str, loss: str) -> Callable[[Arrays, list[Batch]], dict[str, np.ndarray]]:
    """Return ``(masks, batches) → scores`` for a formula of K and the gradient, averaged over the batches, at thinned K.

    ``formula``: "thinned" ``|K ⊙ g|`` (SNIP, Iter-SNIP), "dense" ``|K₀ ⊙ g|`` (FORCE), "square" ``g²`` (GRASP-It),
    "hessian" ``K ⊙ H g`` (GraSP).
    """
    loss_of_logits = LOSSES[loss]

    @partial(jax.jit, compiler_options=compiler_options())
    def gradients(kernels: Arrays, masks: Arrays, state: Any, batch: Batch) -> Arrays:
        def loss_fn(thinned: Arrays) -> jax.Array:
            return loss_of_logits(network.logits(thinned, state, batch[0]), batch[1])

        return jax.grad(loss_fn)(thin(kernels, masks))

    @partial(jax.jit, compiler_options=compiler_options())
    def hessian_product(kernels: Arrays, masks: Arrays, state: Any, batch: Batch, direction: Arrays) -> Arrays:
        def gradient(thinned: Arrays) -> Arrays:
            def loss_fn(thinned: Arrays) -> jax.Array:
                return loss_of_logits(network.logits(thinned, state, batch[0]) / GRASP_TEMPERATURE, batch[1])

            return jax.grad(loss_fn)(thinned)

        thinned = thin(kernels, masks)
        if direction is None:
            return gradient(thinned)
        return jax.jvp(gradient, (thinned,), (direction,))[1]

    def score(masks: Arrays, batches: list[Batch]) -> dict[str, np.ndarray]:
        if formula == "hessian":
            direction = _sum(hessian_product(network.kernels, masks, network.state, batch, None) for batch in batches)
            values = _sum(hessian_product(network.kernels, masks, network.state, batch, direction) for batch in batches)
        else:
            values = _sum(gradients(network.kernels, masks, network.state, batch) for batch in batches)
            values = jax.tree.map(lambda value: value / len(batches), values)
        scores = {}
        for path, value in values.items():
            # One layer at a time: no second copy of the network stands on the device.
            weight = network.effective[path]
            if formula != "dense":
                weight = weight - jnp.where(masks[path], 0, network.kernels[path])
            match formula:
                case "thinned" | "dense":
                    scores[path] = np.asarray(jnp.abs(weight * value))
                case "square":
                    scores[path] = np.asarray(value**2)
                case "hessian":
                    scores[path] = np.asarray(weight * value)
        return scores

    return score


def synflow_scores(model: nnx.Module, image_shape: tuple[int, ...]) -> Callable[[Arrays], dict[str, np.ndarray]]:
    """Return ``masks → scores`` of SynFlow: ``|K| ⊙ ∂R/∂|K|``, with all parameters and statistics by absolute value.

    R grows by orders of magnitude a layer and leaves float32 in a deep residual network. Every residual sum is therefore
    divided by its largest entry, as a constant: all paths cross it, so that all scores shrink by the same factor and
    their order stays.
    """
    network = scored(_rescaled(model), train=False)
    state = jax.tree.map(jnp.abs, network.state)

    @partial(jax.jit, compiler_options=compiler_options())
    def score(kernels: Arrays, effective: Arrays, masks: Arrays, state: Any) -> Arrays:
        # The layer adds its offset to the kernel that it is given: |K| less the offset gives the effective kernel |K|.
        thinned = {path: effective[path] - jnp.where(masks[path], 0, kernels[path]) for path in kernels}
        positive = {path: jnp.abs(weight) for path, weight in thinned.items()}

        def output(positive: Arrays) -> jax.Array:
            model = nnx.merge(network.graph, state)
            for path, layer in prunable_layers(model).items():
                layer.kernel.set_value(positive[path] - layer.scaled_offset())
            return model(jnp.ones((1, *image_shape))).sum()

        gradients = jax.grad(output)(positive)
        return {path: jnp.abs(gradients[path] * positive[path]) for path in positive}

    return lambda masks: jax.tree.map(np.asarray, score(network.kernels, network.effective, masks, state))


class _RescaledSum(ResidualSum):
    """A residual sum divided by its largest entry, which counts as a constant."""

    def __call__(self, branch: jax.Array, shortcut: jax.Array) -> jax.Array:
        total = branch + shortcut
        return total / jax.lax.stop_gradient(jnp.max(total))


def _rescaled(model: nnx.Module) -> nnx.Module:
    copy = unmasked_copy(model)
    for _, module in list(nnx.iter_modules(copy)):
        for name, child in list(vars(module).items()):
            if isinstance(child, ResidualSum):
                setattr(module, name, _RescaledSum())
    return copy


def _sum(trees: Any) -> Any:
    total = None
    for tree in trees:
        total = tree if total is None else jax.tree.map(jnp.add, total, tree)
    return total
