"""The angles and the scale of the columns of a DCT matrix."""

import math

import numpy as np


def angles(odd: np.ndarray, n_in: int, n_out: int) -> np.ndarray:
    """Return ``π · odd · m / 2N`` modulo 2π for every column m, float64 ``[..., n_out]``.

    ``odd [..., 1]`` are integers. They are reduced modulo the period 4N first, so the arguments of the cosine are small
    and lose no digits.
    """
    n = max(n_in, n_out)
    return odd * np.arange(n_out) % (4 * n) * (np.pi / (2 * n))


def column_scale(n_in: int, n_out: int) -> np.ndarray:
    """Return ``s_m`` of every column, float64 ``[n_out]``."""
    n = max(n_in, n_out)
    scale = np.full(n_out, math.sqrt(2 / n))
    scale[0] = math.sqrt(1 / n)
    return scale
