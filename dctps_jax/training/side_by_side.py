"""Several seeds in one program: their states stacked along a leading axis, their functions under ``jax.vmap``.

What is stacked has one entry a seed. A single seed is not stacked at all.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def stacked(trees: Sequence[Any]) -> Any:
    """Return trees of equal shapes as one; a single tree as it is."""
    if len(trees) == 1:
        return trees[0]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@partial(jax.jit, static_argnames="count")
def _parts(tree: Any, count: int) -> list[Any]:
    return [jax.tree.map(lambda leaf, number=number: leaf[number], tree) for number in range(count)]


def parts(tree: Any, count: int) -> list[Any]:
    """Return the trees of ``count`` seeds that :func:`stacked` made one of."""
    return [tree] if count == 1 else _parts(tree, count)


def over_seeds(function: Callable[..., Any], plans: Sequence[Any], shared: Collection[int]) -> Callable[..., Any]:
    """Return ``function(plan, *arguments)`` of one seed as a function of the stacked arguments of all.

    ``plans`` differ in their seeds and in the moments of their images. The arguments at the positions ``shared`` are the same for all
    seeds, and not stacked.
    """
    if len(plans) == 1:
        return partial(function, plans[0])
    # As numbers of the program; else each seed would need one of its own.
    seeds = np.array([plan.seed for plan in plans], np.uint32)
    moments = jax.tree.map(lambda *numbers: np.array(numbers, np.float32), *(plan.normalization for plan in plans))

    def of_one(seed: Any, normalization: Any, *arguments: Any) -> Any:
        return function(plans[0]._replace(seed=seed, normalization=normalization), *arguments)

    def of_all(*arguments: Any) -> Any:
        axes = [None if position in shared else 0 for position in range(len(arguments))]
        return jax.vmap(of_one, in_axes=(0, 0, *axes))(seeds, moments, *arguments)

    return of_all
