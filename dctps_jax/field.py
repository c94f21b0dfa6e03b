"""How a field of the config is declared, and how code reads fields by dotted name."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

# The type of a default → the types that the field takes, and their name in a message.
TYPES: dict[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "True or False"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "a text"),
    tuple: ((tuple, list), "a tuple"),
}


class Allowed(NamedTuple):
    """Which values of its type a field takes: a test, and words that complete the sentence "it must be …"."""

    test: Callable[[Any], bool]
    words: str


class Need(NamedTuple):
    """A dotted field, and a test of its value."""

    field: str
    test: Callable[[Any], bool]


class ByStep(NamedTuple):
    """What a field sets for each training step.

    - ``values``: (config, steps of an epoch, number of steps) → the values of this many first steps.
    - ``words``: what the values are, in words that complete "another …".
    """

    values: Callable[[Any, int, int], np.ndarray]
    words: str


@dataclass(frozen=True)
class Field:
    """One field of the config.

    - ``default``: the default value. Its type is the type of the field.
    - ``help``: what the field does, in one line.
    - ``choices``: the names that the field takes, usually the keys of a registry.
    - ``renamed``: names of earlier versions, each with its present name.
    - ``allowed``: a rule for the value. A field with ``choices`` takes a choice or a value that passes the rule.
    - ``optional``: the field also takes None.
    - ``added``: configs of earlier versions lack the field; they get its default.
    - ``needs``: the field has an effect only if one of these conditions on other fields holds; empty: always.
    - ``resume``: a resumed run may change the field: it does not change the results, or changes them by rounding only.
    - ``grows``: a resumed or finished run may change the field. The run continues exactly as if it had started with the
      new value; if that is impossible, the command is refused.
    - ``by_step``: what the field sets for each step, where that may depend on ``num_epochs``. A run may change
      ``num_epochs`` only if this stays the same for the steps that it has taken.
    """

    default: Any
    help: str
    choices: Collection[str] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    allowed: Allowed | None = None
    optional: bool = False
    added: bool = False
    needs: tuple[Need, ...] = ()
    resume: bool = False
    grows: bool = False
    by_step: ByStep | None = None

    @property
    def type_words(self) -> str:
        """Return which types of values the field takes, in words that complete "it must be …"."""
        return TYPES[type(self.default)][1] + (" or None" if self.optional else "")

    def has_type(self, value: Any) -> bool:
        """Return whether a value is of the field's type. True and False do not count as numbers."""
        if value is None:
            return self.optional
        types = TYPES[type(self.default)][0]
        return isinstance(value, types) and (bool in types or not isinstance(value, bool))


def at_least(low: int, zero: str = "") -> Allowed:
    """Return the rule "at least ``low``". With ``zero``, 0 is allowed as well, and ``zero`` says what it means."""
    words = f"at least {low}" + (f", or 0 {zero}" if zero else "")
    return Allowed(lambda value: value >= low or (zero != "" and value == 0), words)


def flat_fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every field of a config, or of nested JSON objects, with its dotted name."""
    for name, value in config.items():
        if hasattr(value, "items"):
            yield from flat_fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def find_field(values: Any, name: str) -> tuple[Any, bool]:
    """Return the value of a dotted field of a JSON object, nested or flat, and whether the object has the field."""
    if isinstance(values, dict) and name in values:
        return values[name], True
    for part in name.split("."):
        if not isinstance(values, dict) or part not in values:
            return None, False
        values = values[part]
    return values, True
