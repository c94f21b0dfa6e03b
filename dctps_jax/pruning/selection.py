"""From scores to masks: keep exactly as many weights as asked, with the highest scores."""

from collections.abc import Mapping

import numpy as np

from dctps_jax.arguments import names_of
from dctps_jax.errors import UserError

Scores = Mapping[str, np.ndarray]
Masks = dict[str, np.ndarray]


def top_k_global(scores: Scores, count: int, *, allow_zero: bool = False) -> Masks:
    """Return masks of the ``count`` highest scores of all layers together. The earlier layer or position wins a tie.

    Raises :class:`~dctps_jax.errors.UserError` if scores are not finite, or if the lowest score kept is exactly 0
    (unless ``allow_zero``): the scores then do not say which weights to keep.
    """
    flat = np.concatenate([np.asarray(score).ravel() for score in scores.values()])
    check_finite(scores)
    kept = _top_k(flat, count, names_of(scores) if len(scores) == 1 else "the network", allow_zero)
    masks, start = {}, 0
    for path, score in scores.items():
        masks[path] = kept[start : start + score.size].reshape(score.shape)
        start += score.size
    return masks


def _top_k(flat: np.ndarray, count: int, where: str, allow_zero: bool) -> np.ndarray:
    """Return a boolean mask of the ``count`` highest entries, in linear time. The earlier entry wins a tie."""
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


def check_finite(scores: Scores) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` for scores that are infinite or no numbers."""
    bad = [path for path, score in scores.items() if not np.isfinite(score).all()]
    if bad:
        raise UserError(
            f"the scores of {len(bad)} of {len(scores)} layers are not finite, first of {names_of(bad[:1])}: the "
            "network's outputs or gradients overflow; use normalisation, smaller initial weights, or a random method"
        )
