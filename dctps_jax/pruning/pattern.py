"""N:M supports: of every M inputs in a row, each output keeps N weights, e.g. "2:4" (Mishra et al. 2021).

A kernel counts as its matrix, inputs × outputs. The inputs of a convolution are in the order of its kernel: positions
first, channels last. So M inputs in a row are channels of one position, if M divides the number of channels.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from dctps_jax.arguments import names_of, words
from dctps_jax.errors import UserError
from dctps_jax.pruning.layer_rules import Shapes
from dctps_jax.pruning.masks import mask_of_support
from dctps_jax.pruning.random import random_stream, random_supports_within
from dctps_jax.pruning.selection import check_finite

# How far a density may be from N/M, relative to N/M: 1:3 goes with 0.333.
ROUNDING = 0.01


class Pattern(NamedTuple):
    """Each output keeps ``keep`` weights of every ``of`` inputs in a row."""

    keep: int
    of: int


def is_pattern(text: str) -> bool:
    """Return whether an argument is a text N:M with 0 < N < M."""
    found = re.fullmatch(r"([1-9]\d{0,5}):([1-9]\d{0,5})", text, re.ASCII) if isinstance(text, str) else None
    return found is not None and int(found[1]) < int(found[2])


def parse_pattern(text: str, density: float, allocation: str | None = None) -> Pattern | None:
    """Return the pattern of a text, None for "".

    Raises :class:`~dctps_jax.errors.UserError` if it is not N:M, or contradicts the density or the allocation.
    """
    if isinstance(text, str) and text == "":
        return None
    if not is_pattern(text):
        raise UserError(f'pattern is {words(text)}; it must be "N:M" with 0 < N < M, e.g. "2:4", or "" for none')
    if mistake := contradiction(text, density, allocation):
        raise UserError(mistake)
    return Pattern(*map(int, text.split(":")))


def contradiction(pattern: str, density: float, allocation: str | None, prefix: str = "") -> str | None:
    """Return a sentence if a pattern contradicts the density or the allocation, else None.

    ``prefix`` begins the names of these settings in the sentence.
    """
    keep, of = map(int, pattern.split(":"))
    if not math.isclose(density, keep / of, rel_tol=ROUNDING):
        return (
            f"{prefix}pattern is {pattern!r}, which keeps {keep / of:.4g} of the weights, and {prefix}density is "
            f"{density:g}; set the density to {keep / of:.4g}, or leave the pattern out"
        )
    if allocation not in (None, "", "uniform"):
        return (
            f"{prefix}pattern is {pattern!r}, which gives every layer the same density, and the weights are allocated "
            f"by {allocation!r}; choose 'uniform', or a score without an allocation"
        )
    return None


def pattern_counts(shapes: Shapes, pattern: Pattern, fixed: Mapping[str, int]) -> dict[str, int]:
    """Return how many weights each layer keeps; the layers of ``fixed`` keep these counts and have no pattern.

    Raises :class:`~dctps_jax.errors.UserError` for other layers whose number of inputs is not a multiple of M.
    """
    rows = {path: math.prod(shape[:-1]) for path, shape in shapes.items() if path not in fixed}
    undivided = [path for path, count in rows.items() if count % pattern.of]
    if undivided and len(undivided) == len(rows):
        common = math.gcd(*rows.values())
        advice = (
            f"choose an M that divides {common}, which divides all of them" if common > 1 else "leave the pattern out"
        )
        raise UserError(
            f"a pattern of {pattern.keep}:{pattern.of} needs a number of inputs that {pattern.of} divides, and no "
            f"layer has one: they have {', '.join(map(str, sorted(set(rows.values()))))}; {advice}"
        )
    if undivided:
        path, layers = undivided[0], tuple(undivided)
        inputs = "·".join(map(str, shapes[path][:-1]))
        raise UserError(
            f"a pattern of {pattern.keep}:{pattern.of} needs a number of inputs that {pattern.of} divides, and each "
            f"output of {names_of([path])} has {inputs}{f' = {rows[path]}' if '·' in inputs else ''}; keep all weights "
            f"of such layers, dense_layers={layers!r}, or choose another M"
        )
    return {
        path: fixed[path] if path in fixed else math.prod(shape) // pattern.of * pattern.keep
        for path, shape in shapes.items()
    }


def top_of_groups(scores: np.ndarray, count: int, pattern: Pattern) -> np.ndarray:
    """Return a mask of the ``count`` highest scores of every M inputs of an output. The earlier input wins a tie."""
    groups = scores.reshape(-1, pattern.of, scores.shape[-1])
    kept = np.zeros(groups.shape, bool)
    np.put_along_axis(kept, np.argsort(-groups, axis=1, kind="stable")[:, :count], True, axis=1)
    return kept.reshape(scores.shape)


def check_scores(scores: Mapping[str, np.ndarray]) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` for scores that are not finite, or that are all 0 in a layer.

    A single group of inputs may have only scores of 0, e.g. inputs that are 0 in all images: the pattern keeps N of
    them.
    """
    check_finite(scores)
    for path, values in scores.items():
        if not values.any():
            raise UserError(
                f"all scores of {names_of([path])} are 0, and do not say which weights to keep; choose a random "
                "method, or name the layer in dense_layers"
            )


def check_room_in_groups(masks: Mapping[str, np.ndarray], pattern: Pattern) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` where masks keep fewer than N of some M inputs."""
    for path, mask in masks.items():
        least = int(mask.reshape(-1, pattern.of, mask.shape[-1]).sum(axis=1).min())
        if least < pattern.keep:
            raise UserError(
                f"{names_of([path])}: {pattern.keep} of every {pattern.of} inputs are to be kept, and the masks that "
                f"the network has keep {least} of some; prune the network before it has masks"
            )


def random_pattern_masks(
    key: jax.Array, masks: Mapping[str, np.ndarray], pattern: Pattern, fixed: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Return masks with a random choice of N of every M inputs of each output, among the entries True in ``masks``.

    The layers of ``fixed`` have that many weights anywhere. Layer i draws from ``jax.random.fold_in(key, i)``. Raises
    :class:`~dctps_jax.errors.UserError` if M does not divide a layer's inputs, or masks keep too few.
    """
    shapes, counts = {path: mask.shape for path, mask in masks.items()}, {path: fixed.get(path, 0) for path in masks}
    pattern_counts(shapes, pattern, fixed)
    check_room_in_groups({path: mask for path, mask in masks.items() if path not in fixed}, pattern)
    anywhere = random_supports_within(masks, key, shapes, counts)
    chosen = {}
    for position, (path, mask) in enumerate(masks.items()):
        if path in fixed:
            chosen[path] = mask_of_support(anywhere[path], mask.shape)
        else:
            draws = random_stream(jax.random.fold_in(key, position)).random_raw(mask.size) >> np.uint64(12)
            scores = np.where(mask, draws.astype(np.float64).reshape(mask.shape), -1)
            chosen[path] = top_of_groups(scores, pattern.keep, pattern)
    return chosen
