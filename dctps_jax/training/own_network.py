"""A network of the user's own: the function in ``model.name`` builds it, then its plain layers are converted."""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dctps_jax.conversion import convert
from dctps_jax.data.dataset import Size, height_and_width, size_of
from dctps_jax.defaults import FIELDS
from dctps_jax.errors import UserError, some_of
from dctps_jax.ops.target import PORTABLE, tracing_for
from dctps_jax.prunable import prunable_layers
from dctps_jax.runs.summary import versions
from dctps_jax.seeds import stream
from dctps_jax.user_functions import as_options, blaming, call, is_import_path, is_needed

FIELD = "config.model.name"
# The field of a description that holds the shapes of the parameters.
SHAPES = "parameters"
# How many changes a message names.
MAX_SHOWN = 3


def build_own_network(
    config: Any,
    num_classes: int,
    image_size: Size,
    channels: int,
    supports: Mapping[str, np.ndarray] | None = None,
    field: str = FIELD,
) -> nnx.Module:
    """Return the network that the user's function builds, with DCT plus Sparse layers that have ``supports``.

    A network that has such layers already is not changed. Otherwise every layer that ``convert`` knows is converted,
    except those that ``config.model.exclude`` names. ``field`` is the name of the setting in messages.

    Raises :class:`~dctps_jax.errors.UserError` if the function fails or does not return a module, or if the module does
    not map images to logits, changes other variables than parameters, statistics and random streams, has layers that
    ``nnx.vmap`` has stacked, or has no place for the supports.
    """
    made = _make(config, num_classes, image_size, channels, field)
    _trace(config, made, num_classes, image_size, channels, field)
    if prunable_layers(made):
        _check_settings(config, made)
        model = made
    else:
        settings = {name: config.model[name] for name in ("offset", "alpha_init", "alpha_trainable", "exclude")}
        model = convert(made, density=1.0, **settings)
    layers = prunable_layers(model)
    for path, layer in layers.items():
        if layer.stack:
            raise UserError(
                f"{field} is {config.model.name!r}, whose {path} is {math.prod(layer.stack)} layers stacked by "
                "nnx.vmap; a run trains none that are stacked: keep them in an nnx.List, name them in "
                "config.model.exclude, or write a training loop of your own"
            )
    for path, support in (supports or {}).items():
        if path not in layers or support.max(initial=-1) >= math.prod(layers[path].kernel_shape):
            raise UserError(
                f"{field} is {config.model.name!r}, whose network has no layer {path} with a kernel of more than "
                f"{support.max(initial=-1)} weights, which the trained network has; put back the code that it was "
                "trained with"
            )
        layers[path].set_support(support)
    return model


def describe_program(
    config: Any, num_classes: int, image_size: Size, channels: int, field: str = FIELD
) -> dict[str, Any]:
    """Return a description that tells the user's network, before its layers are converted, from other networks.

    It has a digest of the network's computation, the versions of the packages that the digest depends on, and the
    shapes of the parameters. Comments, names of functions and initial weights do not change the digest. Nor do the
    platform and JAX's default precision: a network that was trained on a GPU is the same on a CPU.
    """
    made = _make(config, num_classes, image_size, channels, field)
    with tracing_for(PORTABLE), jax.default_matmul_precision(None):
        program = _trace(config, made, num_classes, image_size, channels, field)
    text = re.sub("0x[0-9a-f]+", "", program)  # addresses of functions
    parameters = nnx.to_flat_state(nnx.state(made, nnx.Param))
    shapes = {".".join(map(str, place)): list(variable[...].shape) for place, variable in parameters}
    return {"digest": hashlib.sha256(text.encode()).hexdigest(), **versions(), SHAPES: shapes}


def change_of_program(known: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return how a network has changed, given two results of :func:`describe_program`; None if nothing shows a change.

    Shapes are always compared. Digests of different versions of the packages are not: JAX may print the same program in
    another way.
    """
    if changes := change_of_shapes(known[SHAPES], now[SHAPES]):
        return changes
    versions = now.keys() - {"digest", SHAPES}
    is_comparable = all(known.get(name) == now[name] for name in versions)
    return "computes something else now" if is_comparable and known["digest"] != now["digest"] else None


def change_of_shapes(known: Mapping[str, Sequence[int]], now: Mapping[str, Sequence[int]]) -> str | None:
    """Return which arrays of a network have other shapes now, or exist only before or now; None if nothing changed."""

    def shape(shapes: Mapping[str, Sequence[int]], name: str) -> str:
        return str(list(shapes[name])) if name in shapes else "absent"

    changes = [
        f"{name} {shape(known, name)} then, {shape(now, name)} now"
        for name in dict.fromkeys([*known, *now])
        if shape(known, name) != shape(now, name)
    ]
    return f"has other shapes now: {some_of(changes, MAX_SHOWN, '; ')}" if changes else None


def check_same_program(workdir: Path, known: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` for a run whose network has changed.

    ``known`` is the description in its checkpoint or its results; None in older files.
    """
    if known and (change := change_of_program(known, now)):
        raise UserError(
            f"--workdir {workdir} belongs to a run of another network: the function that {FIELD} names has changed, "
            f"and its network {change}; put back the code that the run began with, or choose another directory"
        )


def check_finished_program(workdir: Path, config: Any, results: Mapping[str, Any]) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` for a finished run whose network has changed."""
    if "network" in results and is_import_path(config.model.name):
        size, channels = size_of(results["data"]["image_size"]), len(results["data"]["mean"])
        now = describe_program(config, len(results["data"]["class_names"]), size, channels)
        check_same_program(workdir, results["network"], now)


def _make(config: Any, num_classes: int, image_size: Size, channels: int, field: str) -> nnx.Module:
    path = config.model.name
    offered = {
        "num_classes": num_classes,
        "image_size": image_size,
        "channels": channels,
        "offset": config.model.offset,
        "rngs": nnx.Rngs(stream(config.seed, "init")),
    }
    made = call(field, path, offered, as_options(config.model.options))
    if not isinstance(made, nnx.Module):
        raise UserError(f"{field} is {path!r}, which returns {type(made).__name__}; it must return an nnx.Module")
    return made


def _check_settings(config: Any, model: nnx.Module) -> None:
    """Raise UserError for settings of a conversion that does not happen: the results would be reported under them."""
    offsets = {layer.offset.name if layer.offset else None for layer in prunable_layers(model).values()}
    if config.model.offset not in offsets:
        raise UserError(
            f"config.model.offset is {config.model.offset!r}, but the layers of {config.model.name} have "
            f"{', '.join(map(repr, offsets))}; give the function an argument `offset` and hand it to the layers"
        )
    for field in ("exclude", "alpha_init", "alpha_trainable"):
        default = FIELDS[f"model.{field}"].default
        if config.model[field] != default:
            raise UserError(
                f"config.model.{field} is {config.model[field]!r}, which is for plain layers, but {config.model.name} "
                f"has DCT plus Sparse layers already; leave it at {default!r} and set it there, e.g. by "
                "config.model.options"
            )


def _check_call(path: str, model: nnx.Module, field: str) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` for a network that cannot be called with images alone."""
    if not callable(model):
        raise UserError(f"{field} is {path!r}, whose network has no __call__(self, x); give it one")
    needed = [parameter.name for parameter in signature(model.__call__).parameters.values() if is_needed(parameter)]
    if len(needed) > 1:
        raise UserError(
            f"{field} is {path!r}, whose network needs {needed[1]!r} besides the images; it is called with the "
            "images alone: leave the argument out (Dropout and BatchNorm are told by model.train() and model.eval() "
            "whether the network trains) or give it a default value"
        )


def _trace(config: Any, model: nnx.Module, num_classes: int, image_size: Size, channels: int, field: str) -> str:
    """Return the program of the network in training, without computing it. Check what it returns and changes."""
    path, shape = config.model.name, (2, *height_and_width(image_size), channels)
    kept = (nnx.Param, nnx.BatchStat, nnx.RngState, nnx.Intermediate)
    changed = []

    def forward(state: Any, images: jax.Array) -> Any:
        copy: Any = nnx.merge(graph, state)
        before = {place: variable[...] for place, variable in nnx.to_flat_state(nnx.state(copy))}
        logits = copy(images)
        for place, variable in nnx.to_flat_state(nnx.state(copy)):
            if not isinstance(variable, kept) and before.get(place) is not variable[...]:
                changed.append(f"{'.'.join(map(str, place))} ({type(variable).__name__})")
        return logits

    _check_call(path, model, field)
    with blaming(f"{field} is {path!r}, whose network fails on images of shape {list(shape)}", path):
        model.train()
        graph, state = nnx.split(model)
        images = jax.ShapeDtypeStruct(shape, jnp.float32)
        program, logits = jax.make_jaxpr(forward, return_shape=True)(state, images)
    if getattr(logits, "shape", None) != (shape[0], num_classes):
        found = list(logits.shape) if hasattr(logits, "shape") else type(logits).__name__
        raise UserError(
            f"{field} is {path!r}, whose network returns {found} for images of shape {list(shape)}; it must return "
            f"logits of shape {[shape[0], num_classes]}"
        )
    if changed:
        raise UserError(
            f"{field} is {path!r}, whose network changes {changed[0]} when it is called; a run keeps nnx.Param, "
            "nnx.BatchStat and random streams only: make it an nnx.BatchStat"
        )
    return str(program)
