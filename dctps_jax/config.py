"""Check a config before anything is compiled or written: its fields, their types, ranges, and names that exist."""

import difflib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from dctps_jax import data, models, pruning
from dctps_jax.errors import UserError
from dctps_jax.losses import LOSSES
from dctps_jax.offsets import OFFSETS, find_offset
from dctps_jax.ops import cost_model
from dctps_jax.optimizers import OPTIMIZERS
from dctps_jax.pruning import dynamic, schedules

DTYPES = ("float32", "bfloat16")

# Field, test, what is allowed.
RANGES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("seed", lambda value: 0 <= value < 2**32, "a whole number from 0 to 2^32 - 1"),
    ("num_seeds", lambda value: value >= 1, "at least 1"),
    ("batch_size", lambda value: value >= 1, "at least 1"),
    ("eval_batch_size", lambda value: value >= 1, "at least 1"),
    ("num_epochs", lambda value: value >= 1, "at least 1"),
    ("steps_per_dispatch", lambda value: value >= 0, "at least 1, or 0 to choose by platform"),
    ("log_every_steps", lambda value: value >= 1, "at least 1"),
    ("checkpoint_every_steps", lambda value: value >= 0, "at least 1, or 0 for the end of each epoch only"),
    ("model.width", lambda value: value >= 1, "at least 1"),
    ("data.train_fraction", lambda value: 0 < value < 1, "above 0 and below 1, e.g. 0.9"),
    ("data.image_size", lambda value: value >= 0, "at least 1, or 0 for the size the images have"),
    ("data.max_pixels", lambda value: 1 <= value <= 2**27, "at least 1 and at most 2^27"),
    ("pruning.density", lambda value: 0 < value <= 1, "above 0 and at most 1, e.g. 0.01 to train 1 % of the weights"),
    ("pruning.num_steps", lambda value: value >= 0, "at least 1, or 0 for the method's own number"),
    ("pruning.num_batches", lambda value: value >= 1, "at least 1"),
    ("sparse_training.update_every", lambda value: value >= 1, "at least 1"),
    ("sparse_training.stop_fraction", lambda value: 0 <= value <= 1, "from 0 to 1"),
    ("sparse_training.drop_fraction", lambda value: 0 <= value <= 1, "from 0 to 1"),
    ("execution.min_loop", lambda value: value >= 2 or value == 0, "at least 2, or 0 for no loops"),
    ("optimizer.learning_rate", lambda value: 0 < value < math.inf, "above 0 and finite"),
    ("optimizer.momentum", lambda value: 0 <= value < 1, "at least 0 and below 1"),
    ("optimizer.weight_decay", lambda value: 0 <= value < math.inf, "at least 0 and finite"),
    ("optimizer.decay_rate", lambda value: 0 < value <= 1, "above 0 and at most 1"),
)

# Field, the names it may have.
CHOICES: tuple[tuple[str, Iterable[str]], ...] = (
    ("model.name", models.MODELS),
    ("model.init", models.INITIALIZERS),
    ("model.dtype", DTYPES),
    ("data.name", data.SOURCES),
    ("pruning.method", (*pruning.METHODS, "from_run")),
    ("pruning.schedule", schedules.SCHEDULES),
    ("pruning.scope", schedules.SCOPES),
    ("pruning.allocation", ("", *pruning.ALLOCATIONS)),
    ("pruning.loss", LOSSES),
    ("sparse_training.method", dynamic.METHODS),
    ("execution.form", ("auto", *pruning.FORMS)),
    ("execution.method", cost_model.SETTINGS),
    ("optimizer.name", OPTIMIZERS),
)

FLAGS = (
    "model.alpha_trainable", "model.stable", "data.download", "data.augment", "execution.explain", "execution.remat",
    "execution.keep_memory", "tensorboard", "multi_host",
)  # fmt: skip
TEXTS = ("data.dir", "data.cache_dir", "pruning.run", *(field for field, _ in CHOICES))
LISTS = (
    "data.mean",
    "data.std",
    "pruning.dense_layers",
    "pruning.layer_densities",
    "execution.layer_methods",
    "optimizer.milestones",
)
FRACTIONS = (
    "data.train_fraction", "pruning.density", "sparse_training.stop_fraction", "sparse_training.drop_fraction",
    "optimizer.learning_rate", "optimizer.momentum", "optimizer.weight_decay", "optimizer.decay_rate",
)  # fmt: skip

# Field → the Python types it may have, and their name in a message.
TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    **{field: ((int,), "a whole number") for field, _, _ in RANGES if field not in FRACTIONS},
    **{field: ((int, float), "a number") for field in FRACTIONS},
    **{field: ((bool,), "True or False") for field in FLAGS},
    **{field: ((str,), "a text") for field in TEXTS},
    **{field: ((tuple, list), "a tuple") for field in LISTS},
    "model.offset": ((str, type(None)), f"None or one of: {', '.join(OFFSETS)}"),
}


def check_config(config: Any, devices: bool = True) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` for the first field or value that cannot work, with what is allowed.

    Turns the text "None" in ``model.offset`` into None. Without ``devices`` those are not asked for: on some
    platforms they then belong to this process.
    """
    values = dict(flat_fields(config))
    for field in values:
        if field not in TYPES:
            raise UserError(unknown_field(field))
    for field in TYPES:
        if field not in values:
            raise UserError(f"the config has no field config.{field}; build it on dctps_jax.defaults.get_config()")
    if str(config.model.offset).lower() in ("none", ""):
        config.model.offset = None
        values["model.offset"] = None
    for field in TYPES:
        check_value(field, values[field])
    _check_lists(config)
    _check_together(config)
    if devices:
        _check_batches(config, jax.device_count())


def check_value(field: str, value: Any) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` where a field cannot have a value, whatever the other fields are."""
    check_type(field, value)
    if field == "model.offset":
        try:
            find_offset(value)
        except UserError as error:
            raise UserError(f"config.model.{error}") from None
        return
    if field == "execution.method":
        cost_model.check_setting(f"config.{field}", value)
        return
    choices = dict(CHOICES).get(field)
    if choices is not None and value not in choices:
        close = difflib.get_close_matches(value, list(choices), n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        names = ", ".join(choice or "''" for choice in choices)
        raise UserError(f"config.{field} is {value!r}{hint}; it must be one of: {names}")
    for ranged, is_allowed, allowed in RANGES:
        if ranged == field and not is_allowed(value):
            raise UserError(f"config.{field} is {value!r}; it must be {allowed}")


def check_type(field: str, value: Any) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` where a field's value has another type than the field."""
    types, name = TYPES[field]
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise UserError(f"config.{field} is {value!r}; it must be {name}")


def flat_fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every field of a config by dotted path."""
    for name, value in config.items():
        if hasattr(value, "items"):
            yield from flat_fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def unknown_field(field: str) -> str:
    """Return what to say of a field that does not exist."""
    close = difflib.get_close_matches(field, TYPES, n=1)
    hint = f"did you mean config.{close[0]}?" if close else "dctps_jax/defaults.py has them all"
    return f"there is no field config.{field}; {hint}"


def _check_lists(config: Any) -> None:
    milestones = config.optimizer.milestones
    if any(type(epoch) is not int or epoch < 1 for epoch in milestones) or sorted(set(milestones)) != list(milestones):
        raise UserError(
            f"config.optimizer.milestones is {milestones!r}; it must be whole epochs of at least 1 in increasing order, "
            "e.g. (120, 160)"
        )
    mean, std = config.data.mean, config.data.std
    numbers = all(isinstance(number, int | float) and math.isfinite(number) for number in (*mean, *std))
    if not numbers or len(mean) not in (0, 3) or len(mean) != len(std) or any(number <= 0 for number in std):
        raise UserError(
            f"config.data.mean is {mean!r} and config.data.std {std!r}; give three numbers each, the deviations above 0, "
            "or () for both"
        )
    if any(not isinstance(pattern, str) for pattern in config.pruning.dense_layers):
        raise UserError(
            f"config.pruning.dense_layers is {config.pruning.dense_layers!r}; it must be path patterns, e.g. ('conv1',)"
        )
    for pair in config.pruning.layer_densities:
        is_pair = isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str)
        if not (is_pair and isinstance(pair[1], int | float) and 0 < pair[1] <= 1):
            raise UserError(
                f"config.pruning.layer_densities has {pair!r}; it must hold (pattern, density) pairs with densities above "
                "0 and at most 1, e.g. (('fc', 0.5),)"
            )
    for pair in config.execution.layer_methods:
        is_pair = isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str)
        if is_pair:
            cost_model.check_setting(f"the method of {pair[0]!r} in config.execution.layer_methods", pair[1])
        else:
            raise UserError(
                f"config.execution.layer_methods has {pair!r}; it must hold (pattern, method) pairs with a method of: "
                f"{', '.join(cost_model.SETTINGS)}, e.g. (('layer1.*', 'on_support'),)"
            )


def _check_together(config: Any) -> None:
    if config.seed + config.num_seeds > 2**32:
        raise UserError(
            f"config.seed is {config.seed} and config.num_seeds {config.num_seeds}; the last seed must be below 2^32"
        )
    if config.pruning.method == "from_run" and not config.pruning.run:
        raise UserError("config.pruning.run is empty; name the directory of the run whose masks from_run is to take")
    if (
        config.sparse_training.method != "static"
        and config.pruning.density == 1
        and config.pruning.method != "from_run"
    ):
        raise UserError(
            f"config.sparse_training.method is {config.sparse_training.method!r} and config.pruning.density 1.0; a dense "
            "network has no weights to move, choose a density below 1 or 'static'"
        )
    if config.model.name not in models.RESNETS and (config.model.width != 64 or config.model.stable):
        raise UserError(
            f"config.model.width and config.model.stable are for ResNets; {config.model.name} has neither, leave them at "
            "64 and False"
        )


def _check_batches(config: Any, devices: int) -> None:
    for field in ("batch_size", "eval_batch_size"):
        if config[field] % devices:
            raise UserError(
                f"config.{field} is {config[field]}, which {devices} devices cannot share evenly; choose a multiple of "
                f"{devices}, e.g. {max(1, round(config[field] / devices)) * devices}"
            )
