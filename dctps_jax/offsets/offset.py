"""What the rest of the package asks of an offset."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from dctps_jax.arguments import is_whole


class Factors(Protocol):
    """An offset of one kernel shape, written as two products of small tables.

    With p a position of the kernel, c an input channel and m an output channel::

        D[p, c, m] = positions[0][p, m] · channels[0][c, m] + positions[1][p, m] · channels[1][c, m]

    The number of input channels c_in is even. ``channels[0]`` is even under ``c → c_in − 1 − c``, ``channels[1]`` is
    odd, so the first half of the channels determines both.
    """

    def channels(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the even and odd channel tables for the first half of the channels, float64 ``[c_in / 2, c_out]``."""
        ...

    def positions(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the position tables of the even and of the odd term, float64 ``[positions, c_out]``."""
        ...


class Transform(Protocol):
    """Products with an offset ``D [n_in, n_out]`` in fewer operations than those with a matrix take.

    Neither function makes D. Both return the dtype that they are given.
    """

    @property
    def length(self) -> int:
        """The length N of the transform. Its time grows with ``N log2 N``."""
        ...

    def product(self, inputs: jax.Array) -> jax.Array:
        """Return ``inputs @ D`` for ``inputs [..., n_in]``."""
        ...

    def transposed(self, outputs: jax.Array) -> jax.Array:
        """Return ``outputs @ D.T`` for ``outputs [..., n_out]``."""
        ...


def check_sizes(label: str, n_in: int, n_out: int) -> None:
    """Raise ``ValueError`` where an offset has no row or no column, or no whole number of them."""
    if not (is_whole(n_in) and is_whole(n_out)) or n_in < 1 or n_out < 1:
        raise ValueError(f"a {label} matrix needs whole numbers of rows and columns, at least 1, got {n_in} × {n_out}")


def no_factors(shape: Sequence[int]) -> None:
    """Return None: an offset without factors."""


def no_transform(n_in: int, n_out: int) -> None:
    """Return None: an offset without a fast transform."""


@dataclasses.dataclass(frozen=True)
class Offset:
    """A fixed matrix ``D [n_in, n_out]`` for each pair of sizes. A layer adds ``α·D`` to its trained kernel.

    A kernel of shape ``(*spatial, in_features // groups, out_features)`` takes the matrix with
    ``n_in = ∏ shape[:-1]`` rows, in C order: position first, then input channel.

    - ``name``: the value of ``config.model.offset`` and of a layer's argument ``offset``.
    - ``label``: its name in figures.
    - ``matrix(n_in, n_out)``: D in float64, by NumPy.
    - ``kernel(shape, dtype)``: the same as a jax array of a kernel's shape. It is called while a program is traced,
      once for each use of D. Large kernels should be computed from small tables or indices, so that the compiler can
      make them inside the operation that reads them and the program holds no array of their size.
    - ``operations(n_in, n_out)``: the fewest known floating point operations of a product of D with one vector.
    - ``torch_name``: the name of D in a layer of the original's PyTorch checkpoints, or None if it has no such offset.
    - ``factors(shape)``: the :class:`Factors` of a kernel, or None where it has none or they would save nothing.
    - ``transform(n_in, n_out)``: the :class:`Transform` of D, or None where there is none.
    """

    name: str
    label: str = dataclasses.field(repr=False)
    matrix: Callable[[int, int], np.ndarray] = dataclasses.field(repr=False)
    kernel: Callable[[Sequence[int], Any], jax.Array] = dataclasses.field(repr=False)
    operations: Callable[[int, int], float] = dataclasses.field(repr=False)
    torch_name: str | None = dataclasses.field(default=None, repr=False)
    factors: Callable[[Sequence[int]], Factors | None] = dataclasses.field(default=no_factors, repr=False)
    transform: Callable[[int, int], Transform | None] = dataclasses.field(default=no_transform, repr=False)
