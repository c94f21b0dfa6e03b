"""Equal numbers of weights in the layers that ``nnx.vmap`` has stacked."""

import math
from collections.abc import Mapping

import numpy as np

from dctps_jax.pruning.layer_rules import Shapes
from dctps_jax.pruning.selection import Masks, Scores, top_k_global


def stack_counts(
    targets: Mapping[str, float], sizes: Mapping[str, int], layers: Mapping[str, int], total: int, room: int
) -> dict[str, int]:
    """Return the count of each stack: a multiple of the stack's number of layers, close to its target.

    The counts sum to at most ``total``. What they leave, for the layers that are not stacked, is at most ``room``; it
    is more only if no multiple fits.
    """
    counts = {path: layers[path] * round(target / layers[path]) for path, target in targets.items()}

    def excess(path: str) -> float:
        return (counts[path] - targets[path]) / layers[path]

    while sum(counts.values()) > total:
        path = max((path for path in counts if counts[path]), key=excess)
        counts[path] -= layers[path]
    while (left := total - sum(counts.values())) > room:
        can_take = [path for path in counts if layers[path] <= min(left, sizes[path] - counts[path])]
        if not can_take:
            break
        path = min(can_take, key=excess)
        counts[path] += layers[path]
    return counts


def equal_in_stacks(scores: Scores, masks: Masks, allowed: Mapping[str, np.ndarray], stacks: Shapes) -> Masks:
    """Return masks that keep equally many weights in every layer of a stack: the weights with the highest scores.

    A stack keeps about as many weights as in ``masks``; the layers that are not stacked take the rest. No layer keeps
    more weights than ``allowed`` has; the scores of allowed weights are above all others.
    """
    layers = {path: math.prod(stacks.get(path, ())) for path in masks}
    single = {path: scores[path] for path in masks if not stacks.get(path)}
    kept = {path: int(mask.sum()) for path, mask in masks.items()}
    total, room = sum(kept.values()), sum(int(allowed[path].sum()) for path in single)
    sizes = {path: layers[path] * allowed[path].reshape(layers[path], -1).sum(1).min() for path in masks}
    targets = {path: min(kept[path], sizes[path]) for path in masks if path not in single}
    counts = stack_counts(targets, sizes, layers, total, room)
    count = min(total - sum(counts.values()), room)
    equal = top_k_global(single, count, allow_zero=True) if single else {}
    for path, count in counts.items():
        rows = np.asarray(scores[path]).reshape(layers[path], -1)
        equal[path] = np.stack(
            [top_k_global({path: row}, count // layers[path], allow_zero=True)[path] for row in rows]
        )
    return {path: equal[path].reshape(mask.shape) for path, mask in masks.items()}
