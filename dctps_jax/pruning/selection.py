"""From scores to masks: the highest-scoring weights, exactly as many as asked, over all layers or within each."""

from collections.abc import Mapping

import numpy as np

from dctps_jax.errors import UserError

Scores = Mapping[str, np.ndarray]
Masks = dict[str, np.ndarray]


def top_k_global(scores: Scores, count: int, *, allow_zero: bool = False) -> Masks:
    """Keep the ``count`` highest scores of all layers together. Ties are broken by position, earlier layers first.

    Raises :class:`~dctps_jax.errors.UserError` where scores are not finite, or where the lowest score kept is exactly 0
    (unless ``allow_zero``): nothing then tells the kept weights from others.
    """
    flat = np.concatenate([np.asarray(score).ravel() for score in scores.values()])
    _check_finite(scores)
    kept = _top_k(flat, count, "the network", allow_zero)
    masks, start = {}, 0
    for path, score in scores.items():
        masks[path] = kept[start : start + score.size].reshape(score.shape)
        start += score.size
    return masks


def top_k_per_layer(scores: Scores, counts: Mapping[str, int], *, allow_zero: bool = False) -> Masks:
    """Keep the ``counts[path]`` highest scores of each layer; otherwise as :func:`top_k_global`."""
    _check_finite(scores)
    return {
        path: _top_k(np.asarray(score).ravel(), counts[path], path, allow_zero).reshape(score.shape)
        for path, score in scores.items()
    }


def _top_k(flat: np.ndarray, count: int, where: str, allow_zero: bool) -> np.ndarray:
    """Return a boolean mask of the ``count`` highest entries, the first ones among equals; linear time."""
    kept = np.zeros(flat.size, bool)
    if count == 0:
        return kept
    cut = np.partition(flat, flat.size - count)[flat.size - count]
    if cut == 0 and count < flat.size and not allow_zero:
        raise UserError(
            f"only {np.count_nonzero(flat > 0)} of {flat.size} weights of {where} have a score above 0, {count} are to be "
            "kept: the scores do not say which. Networks whose last layers start at zero (Fixup without offset) need a "
            "random method, a lower density, or another initialisation"
        )
    np.greater(flat, cut, out=kept)
    ties = np.flatnonzero(flat == cut)
    kept[ties[: count - np.count_nonzero(kept)]] = True
    return kept


def _check_finite(scores: Scores) -> None:
    bad = [path for path, score in scores.items() if not np.isfinite(score).all()]
    if bad:
        raise UserError(
            f"the scores of {len(bad)} of {len(scores)} layers are not finite, first of {bad[0]}: the network's outputs or "
            "gradients overflow; use normalisation, smaller initial weights, or a random method"
        )
