"""Checks of arguments: for an argument of a wrong type they raise one sentence that names it.

Each check raises :class:`~dctps_jax.errors.UserError`, or returns the argument in the type that its caller needs.
"""

import math
import os
import reprlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from dctps_jax.errors import UserError, did_you_mean


def words(value: Any) -> str:
    """Return what an argument is, in words that follow "it is"."""
    if isinstance(value, jax.Array | np.ndarray):
        return f"an array of {value.dtype} of shape {value.shape}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    is_short = value is None or isinstance(value, bool | int | float | str | bytes | list | tuple | dict | set)
    return " ".join(reprlib.repr(value).split()) if is_short else f"an object of type {type(value).__name__}"


def check_model(model: Any, name: str = "model") -> None:
    """Raise UserError unless ``model`` is a network; a common mistake is to give its class."""
    if isinstance(model, type):
        raise UserError(
            f"{name} is the class {model.__name__}; give a network that it makes, e.g. "
            f"{model.__name__}(rngs=nnx.Rngs(0))"
        )
    if not isinstance(model, nnx.Pytree):
        raise UserError(f"{name} is {words(model)}; it must be a network, an nnx.Module")


def check_has_arrays(function: str, model: Any) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` for a network without arrays, which ``function`` needs."""
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(nnx.state(model))):
        raise UserError(
            f"the network has shapes and no arrays, as nnx.eval_shape makes it; {function} needs the arrays, so build "
            "the network without nnx.eval_shape"
        )


def check_not_traced(function: str, model: Any) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` for a network in a traced function, where arrays have no values."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(nnx.state(model))):
        raise UserError(
            f"{function} was called inside a traced function, e.g. in jax.jit, nnx.jit or nnx.grad; call it outside"
        )


def names_of(paths: Iterable[str]) -> str:
    """Return dotted paths of layers as a list in a sentence; a layer that is the whole network has the path ""."""
    return ", ".join(path or "the network" for path in paths)


def check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool | np.bool_):
        raise UserError(f"{name} is {words(value)}; it must be True or False")


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        hint = did_you_mean(value, choices) if isinstance(value, str) else ""
        raise UserError(f"{name} is {words(value)}{hint}; it must be one of: {', '.join(choices)}")


def is_number(value: Any) -> bool:
    """Return whether a value is one real number; True and False do not count. A traced number does."""
    if isinstance(value, jax.Array | np.ndarray):
        return value.ndim == 0 and (
            jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)
        )
    return is_whole(value) or isinstance(value, float | np.floating)


def check_number(name: str, value: Any) -> None:
    if not is_number(value) or not (isinstance(value, Tracer) or math.isfinite(value)):
        raise UserError(f"{name} is {words(value)}; it must be a finite number")


def is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_size(**sizes: Any) -> None:
    """Raise UserError unless every value is a whole number of at least 1."""
    for name, value in sizes.items():
        if not is_whole(value) or value < 1:
            raise UserError(f"{name} is {words(value)}; it must be a whole number of at least 1")


def check_sizes(**sizes: Any) -> None:
    """Raise UserError unless every value is a whole number of at least 1, or a sequence of such numbers."""
    for name, value in sizes.items():
        if not all(is_whole(size) and size >= 1 for size in as_tuple(value)):
            raise UserError(f"{name} is {words(value)}; every size must be a whole number of at least 1")


def as_tuple(value: Any) -> tuple[Any, ...]:
    """Return one size, or several, as a tuple."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def patterns(name: str, value: Any) -> tuple[str, ...]:
    """Return path patterns: one text, or several."""
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, Iterable) or isinstance(texts, type):
        raise UserError(f"{name} is {words(value)}; it must be path patterns, e.g. ('head', 'blocks.*')")
    texts = tuple(texts)
    for text in texts:
        if not isinstance(text, str):
            raise UserError(f"{name} is {words(value)}; it must be path patterns, e.g. ('head', 'blocks.*')")
    return texts


def pairs(name: str, value: Any) -> dict[str, Any]:
    """Return pairs of a path pattern and a value as a dict."""
    found: Any = value.items() if isinstance(value, Mapping) else value
    found = tuple(found) if isinstance(found, Iterable) and not isinstance(found, str | bytes | type) else (None,)
    for pair in found:
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[0], str):
            raise UserError(
                f"{name} is {words(value)}; it must be a dict by path pattern, or (pattern, density) pairs, e.g. "
                "{'head': 0.5}"
            )
    return dict(found)


def check_by_path(name: str, value: Any, what: str) -> None:
    """Raise UserError unless ``value`` is a mapping by dotted path; ``what`` describes its values in the message."""
    if not isinstance(value, Mapping) or not all(isinstance(path, str) for path in value):
        raise UserError(f"{name} is {words(value)}; it must be a dict of {what} by the layers' dotted paths")


def check_dtype(name: str, value: Any, is_optional: bool = False) -> None:
    """Raise UserError unless ``value`` is a type of real or complex floating-point numbers, or None if optional."""
    if value is None and is_optional:
        return
    try:
        is_inexact = value is not None and jnp.issubdtype(jnp.dtype(value), jnp.inexact)
    except TypeError:
        is_inexact = False
    if not is_inexact:
        raise UserError(
            f"{name} is {words(value)}; it must be a type of floating-point numbers, e.g. jnp.float32 or jnp.bfloat16"
        )


def shape_words(inputs: Any) -> str:
    """Return the shape of inputs in words that follow "the inputs have"."""
    return f"shape {inputs.shape}" if hasattr(inputs, "shape") else f"no shape, they are {words(inputs)}"


def check_inputs(inputs: Any, features: int, num_axes: int = 1) -> None:
    """Raise UserError unless ``inputs`` has ``features`` numbers in its last axis and at least ``num_axes`` axes."""
    if not hasattr(inputs, "shape") or len(inputs.shape) < num_axes or inputs.shape[-1] != features:
        axes = "" if num_axes == 1 else f" and at least {num_axes} axes"
        raise UserError(
            f"the inputs have {shape_words(inputs)}; they must be an array with {features} features in its last "
            f"axis{axes}"
        )


def check_shapes(name: str, value: Any) -> None:
    """Raise UserError unless ``value`` is a mapping from paths to shapes."""
    check_by_path(name, value, "shapes")
    for path, shape in value.items():
        check_shape(f"{name}: the shape of {path!r}", shape)


def check_shape(name: str, shape: Any) -> None:
    if not isinstance(shape, list | tuple) or not all(is_whole(size) and size >= 0 for size in shape):
        raise UserError(f"{name} is {words(shape)}; it must be a tuple of whole numbers, e.g. (3, 3, 64, 64)")


def as_array(name: str, value: Any, what: str) -> np.ndarray | jax.Array:
    """Return an array; nested lists of numbers become one. ``what`` says in the message what it should be."""
    try:
        array = value if isinstance(value, jax.Array) else np.asarray(value)
    except ValueError:  # lists of different lengths
        array = np.array(None)
    if array.dtype.kind in "OSU" or not isinstance(value, jax.Array | np.ndarray | list | tuple):
        raise UserError(f"{name} is {words(value)}; it must be {what}")
    return array


def check_zero_or_one(mask: Any, name: str = "the mask") -> None:
    """Raise UserError for a mask with other values than 0 and 1. The values of a traced mask cannot be checked."""
    if mask.dtype != bool and not isinstance(mask, Tracer) and not np.isin(np.asarray(mask), (0, 1)).all():
        raise UserError(f"{name} has other values than 0 and 1; give booleans, True where a weight is trained")


def as_path(name: str, value: Any) -> Path:
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"{name} is {words(value)}; it must be the path of a file, e.g. 'network.safetensors'")
    return Path(value)
