"""Arguments of convolutions, checked and with one value for each dimension: kernel size, strides, dilation, padding."""

from collections.abc import Collection
from typing import Any

from dctps_jax.arguments import as_tuple, check_sizes, is_whole, words
from dctps_jax.errors import UserError


def checked_kernel_size(kernel_size: Any) -> tuple[int, ...]:
    """Return a size for each spatial dimension; one number is the size of a single dimension."""
    check_sizes(kernel_size=kernel_size)
    if not as_tuple(kernel_size):
        raise UserError("kernel_size is (); it must have at least one dimension; a layer without one is DCTpSLinear")
    return as_tuple(kernel_size)


def per_dimension(name: str, value: Any, rank: int) -> tuple[int, ...]:
    """Return a size for each spatial dimension; None is 1."""
    value = 1 if value is None else value
    check_sizes(**{name: value})
    sizes = (value,) * rank if is_whole(value) else tuple(value)
    if len(sizes) != rank:
        raise UserError(f"{name} is {words(value)}; it must be a whole number, or one for each of {rank} dimensions")
    return sizes


def checked_padding(padding: Any, rank: int, names: Collection[str]) -> str | tuple[tuple[int, int], ...]:
    """Return a padding as one of its ``names`` or as one (low, high) pair a spatial dimension."""
    if isinstance(padding, str) and padding in names:
        return padding
    pairs: Any = (padding,) * rank if is_whole(padding) else padding if isinstance(padding, list | tuple) else ()
    pairs = tuple((pad, pad) if is_whole(pad) else tuple(pad) if isinstance(pad, list | tuple) else () for pad in pairs)
    if len(pairs) != rank or not all(len(pair) == 2 and all(map(is_whole, pair)) for pair in pairs):
        raise UserError(
            f"padding is {words(padding)}; it must be {', '.join(map(repr, names))}, an int, or a sequence of {rank} "
            "ints or (low, high) pairs"
        )
    return pairs
