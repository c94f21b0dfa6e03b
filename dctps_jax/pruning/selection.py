"""From scores to masks: keep exactly as many weights as asked, those with the highest scores."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from dctps_jax.errors import UserError
from dctps_jax.pruning.allocation import stack_counts

Scores = Mapping[str, np.ndarray]
Masks = dict[str, np.ndarray]


def top_k_global(scores: Scores, count: int, *, allow_zero: bool = False) -> Masks:
    """Return masks of the ``count`` highest scores of all layers together. The earlier layer or position wins a tie.

    Raises :class:`~dctps_jax.errors.UserError` if scores are not finite, or if the lowest score kept is exactly 0
    (unless ``allow_zero``): the scores then do not say which weights to keep.
    """
    flat = np.concatenate([np.asarray(score).ravel() for score in scores.values()])
    _check_finite(scores)
    kept = _top_k(flat, count, ", ".join(scores) if len(scores) == 1 else "the network", allow_zero)
    masks, start = {}, 0
    for path, score in scores.items():
        masks[path] = kept[start : start + score.size].reshape(score.shape)
        start += score.size
    return masks


def equal_in_stacks(scores: Scores, masks: Masks, allowed: Masks, stacks: Mapping[str, Sequence[int]]) -> Masks:
    """Return masks that keep equally many weights in every layer of a stack: those of its highest scores.

    A stack keeps about as many weights as in ``masks``; the layers that are not stacked take what this leaves. No layer
    keeps more weights than are ``allowed``, whose scores are above all others.
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
        equal[path] = np.stack([_top_k(row, count // layers[path], path, True) for row in rows])
    return {path: equal[path].reshape(mask.shape) for path, mask in masks.items()}


def _top_k(flat: np.ndarray, count: int, where: str, allow_zero: bool) -> np.ndarray:
    """Return a boolean mask of the ``count`` highest entries. The earlier entry wins a tie. Takes linear time."""
    kept = np.zeros(flat.size, bool)
    if count == 0:
        return kept
    cut = np.partition(flat, flat.size - count)[flat.size - count]
    if cut == 0 and count < flat.size and not allow_zero:
        positive = np.count_nonzero(flat > 0)
        if positive == 0:
            why = (
                "no gradient reaches them, as in a network whose last layers start at zero (Fixup's do), or all are "
                "zero, as S is before training in a layer with an offset; use a random method or another "
                "initialisation"
            )
        else:
            why = "a larger batch, fewer steps, another density or a random method may help"
        raise UserError(
            f"only {positive} of {flat.size} weights of {where} have a score above 0, but {count} are to be kept: the "
            f"scores do not say which; {why}"
        )
    np.greater(flat, cut, out=kept)
    ties = np.flatnonzero(flat == cut)
    kept[ties[: count - np.count_nonzero(kept)]] = True
    return kept


def _check_finite(scores: Scores) -> None:
    bad = [path for path, score in scores.items() if not np.isfinite(score).all()]
    if bad:
        raise UserError(
            f"the scores of {len(bad)} of {len(scores)} layers are not finite, first of {bad[0]}: the network's "
            "outputs or gradients overflow; use normalisation, smaller initial weights, or a random method"
        )
