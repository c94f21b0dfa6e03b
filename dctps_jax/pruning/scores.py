"""Scores of weights at initialisation. Pruning keeps the weights with the highest scores.

A score says how much a trained change of a weight matters to the network. It is a function of the effective kernel K =
α·D + M⊙S, without offset M⊙S. At first M keeps every weight. (The original scores plain layers only.)

Pruning in several steps removes more weights from the mask M at each step. With an offset S starts at zero, so K stays
the same from step to step: only the batches can change the scores.

To add a score, write one formula, a function of this file, and one line of :data:`SCORES`. A formula takes the network,
the masks and the batches of a step. It yields the scores of one layer after another, so that the device holds no second
copy of the network.
"""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from dctps_jax.pruning.batches import Batch
from dctps_jax.pruning.scored_network import Arrays, ScoredNetwork
from dctps_jax.pruning.synflow import flow_scores

LayerScores = Iterator[tuple[str, jax.Array]]


def sensitivity(network: ScoredNetwork, masks: Arrays, batches: list[Batch]) -> LayerScores:
    """Yield ``|K ⊙ ∂L/∂K|`` of the thinned kernel K."""
    for path, gradient in network.mean_gradients(masks, batches).items():
        yield path, jnp.abs(network.effective_kernel(path, masks) * gradient)


def initial_sensitivity(network: ScoredNetwork, masks: Arrays, batches: list[Batch]) -> LayerScores:
    """Yield ``|K₀ ⊙ ∂L/∂K|`` of the dense initial kernel K₀, with the gradient at the thinned kernel K."""
    for path, gradient in network.mean_gradients(masks, batches).items():
        yield path, jnp.abs(network.initial_kernels[path] * gradient)


def squared_gradient(network: ScoredNetwork, masks: Arrays, batches: list[Batch]) -> LayerScores:
    """Yield ``(∂L/∂K)²``."""
    for path, gradient in network.mean_gradients(masks, batches).items():
        yield path, gradient**2


def mean_squared_gradient(network: ScoredNetwork, masks: Arrays, batches: list[Batch]) -> LayerScores:
    """Yield the diagonal of the empirical Fisher information, the mean of ``(∂L/∂K)²`` over single images."""
    yield from network.mean_squared_gradients(masks, batches).items()


def gradient_flow(network: ScoredNetwork, masks: Arrays, batches: list[Batch]) -> LayerScores:
    """Yield ``K ⊙ H ∂L/∂K`` with the Hessian H of L, with the sign that makes the highest scores stay."""
    gradients = network.sum_gradients(masks, batches)
    for path, product in network.sum_hessian_products(masks, batches, gradients).items():
        yield path, network.effective_kernel(path, masks) * product


def synaptic_flow(network: ScoredNetwork, masks: Arrays, batches: list[Batch]) -> LayerScores:
    """Yield ``|K| ⊙ ∂R/∂|K|``, where R sums the outputs for an image of ones."""
    yield from flow_scores(network, masks, batches[0][0]).items()


def magnitude(network: ScoredNetwork, masks: Arrays, batches: list[Batch]) -> LayerScores:
    """Yield ``|K₀|``, where K₀ = α·D + S."""
    for path, weights in network.initial_kernels.items():
        yield path, jnp.abs(weights)


def sparse_magnitude(network: ScoredNetwork, masks: Arrays, batches: list[Batch]) -> LayerScores:
    """Yield ``|S|``, without α·D."""
    for path, weights in network.kernels.items():
        yield path, jnp.abs(weights)


def random_numbers(network: ScoredNetwork, masks: Arrays, batches: list[Batch]) -> LayerScores:
    """Yield random numbers in [0, 1), the same at every step."""
    for number, (path, kernel) in enumerate(network.kernels.items()):
        yield path, jax.random.uniform(jax.random.fold_in(network.key, number), kernel.shape)


class Score(NamedTuple):
    """A score and how pruning uses it.

    - ``formula``: the function that computes it.
    - ``source``: where it comes from.
    - ``batches``: the steps at which it takes batches of images.
    - ``temperature``: the loss is computed on the logits divided by it; None: the formula has no loss.
    - ``train``: BatchNorm is in training mode.
    - ``default_steps``: the number of steps if the config asks for none.
    - ``rounds``: whether the number of weights "kept" or "pruned" is rounded down between the steps.
    - ``regrow``: a weight that a step removed may return at a later one.
    """

    formula: Callable[[ScoredNetwork, Arrays, list[Batch]], LayerScores]
    source: str
    batches: Literal["each step", "first step", "none"] = "each step"
    temperature: float | None = 1.0
    train: bool = False
    default_steps: int = 1
    rounds: Literal["kept", "pruned"] = "kept"
    regrow: bool = False


# fmt: off
SCORES: dict[str, Score] = {
    "snip": Score(sensitivity, "Lee et al. 2019"),
    "grasp": Score(gradient_flow, "Wang et al. 2020", temperature=200.0),
    "iter_snip": Score(sensitivity, 'de Jorge et al. 2021 (the original\'s "FORCE")', train=True, default_steps=10),
    "grasp_it": Score(squared_gradient, "de Jorge et al. 2021", train=True, default_steps=10),
    "force": Score(initial_sensitivity, "de Jorge et al. 2021", train=True, default_steps=10, regrow=True),
    "fisher": Score(mean_squared_gradient, "Sung et al. 2021"),
    "synflow": Score(
        synaptic_flow, "Tanaka et al. 2020", batches="first step", temperature=None, default_steps=100, rounds="pruned"
    ),
    "magnitude": Score(magnitude, "the initial weights", batches="none", temperature=None),
    "magnitude_sparse": Score(sparse_magnitude, "the trained weights", batches="none", temperature=None),
    "random": Score(random_numbers, "the key", batches="none", temperature=None),
}
# fmt: on


def markdown_table() -> str:
    """Return :data:`SCORES` as a table for the documents."""
    lines = [
        "| method | score | loss | BatchNorm | steps | source |",
        "| --- | --- | --- | --- | ---: | --- |",
    ]
    for name, score in SCORES.items():
        formula = (score.formula.__doc__ or "").removeprefix("Yield ").rstrip(".").replace("|", "\\|")
        loss = "none" if score.temperature is None else "training"
        if score.temperature not in (None, 1):
            loss = f"of the logits ÷ {score.temperature:g}"
        mode = "training" if score.train else "evaluation"
        lines.append(f"| `{name}` | {formula} | {loss} | {mode} | {score.default_steps} | {score.source} |")
    return "\n".join(lines) + "\n"
