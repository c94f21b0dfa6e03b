"""Which values fields take: tests that several sections share."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from dctps_jax.field import Allowed

FROM_0_TO_1 = Allowed(lambda value: 0 <= value <= 1, "from 0 to 1")
FINITE = Allowed(lambda value: 0 <= value < math.inf, "at least 0 and finite")
BELOW_1 = Allowed(lambda value: 0 <= value < 1, "at least 0 and below 1")


def are_epochs(values: Iterable[Any]) -> bool:
    """Return whether values are whole epochs from 1 in increasing order."""
    epochs = list(values)
    return all(type(epoch) is int and epoch >= 1 for epoch in epochs) and sorted(set(epochs)) == epochs


def are_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def are_pairs(values: Iterable[Any], is_allowed: Callable[[Any], bool]) -> bool:
    """Return whether values are pairs of a path pattern and something allowed."""
    return all(
        isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str) and is_allowed(pair[1])
        for pair in values
    )


def is_coordinator(value: str) -> bool:
    host, colon, port = value.rpartition(":")
    return value in ("", "auto") or bool(host and colon and port.isdecimal() and 0 < int(port) < 1 << 16)


def is_density(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value <= 1
