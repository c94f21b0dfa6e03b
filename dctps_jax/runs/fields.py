"""The fields in the files of a run, with their types and ranges.

A value that breaks a rule raises ``ValueError``, which names the field.
"""

import reprlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dctps_jax.data.images import FITS
from dctps_jax.field import find_field
from dctps_jax.fields.model import DTYPES
from dctps_jax.offsets import OFFSETS

# A test of a value, and what is allowed.
Rule = tuple[Callable[[Any], bool], str]
Rules = Mapping[str, Rule]


def is_number(value: Any, low: float = -sys.float_info.max, high: float = sys.float_info.max) -> bool:
    """Return whether a value of a JSON file is a finite number within the bounds. True and False do not count."""
    return type(value) in (int, float) and low <= value <= high


def is_whole(value: Any, low: int) -> bool:
    return type(value) is int and low <= value < 2**63


def is_list_of(value: Any, count: int, is_allowed: Callable[[Any], bool]) -> bool:
    """Return whether a value is a list of ``count`` allowed values, or of at least one if ``count`` is 0."""
    return isinstance(value, list) and len(value) == (count or max(1, len(value))) and all(map(is_allowed, value))


def is_of_channels(value: Any, is_allowed: Callable[[Any], bool]) -> bool:
    """Return whether a value is a list of allowed values, one for each channel of RGB or grey images."""
    return any(is_list_of(value, channels, is_allowed) for channels in (1, 3))


TEXT: Rule = (lambda value: isinstance(value, str), "a text")
NUMBER: Rule = (is_number, "a finite number")
POSITIVE_OR_ZERO: Rule = (lambda value: is_number(value, 0), "a finite number of at least 0")
SPEED: Rule = (lambda value: value is None or is_number(value, 0), "a finite number of at least 0, or null")
SHARE: Rule = (lambda value: is_number(value, 0, 1), "a number from 0 to 1")
SHARE_OR_NONE: Rule = (lambda value: value is None or is_number(value, 0, 1), "a number from 0 to 1, or null")
DENSITY: Rule = (lambda value: is_number(value, 0, 1) and value > 0, "a number above 0 and at most 1")
DENSITY_OR_NONE: Rule = (lambda value: value is None or DENSITY[0](value), "a number above 0 and at most 1, or null")
COUNT: Rule = (lambda value: is_whole(value, 0), "a whole number of at least 0")
FROM_ONE: Rule = (lambda value: is_whole(value, 1), "a whole number of at least 1")

CONFIG: Rules = {
    "model.name": TEXT,
    "model.offset": (lambda value: value in (None, *OFFSETS), f"null or one of: {', '.join(OFFSETS)}"),
    "pruning.density": DENSITY,
    "pruning.method": TEXT,
    "data.name": TEXT,
}
# Configs of older versions have fewer fields.
CONFIG_IF_THERE: Rules = {"seed": COUNT, "num_seeds": FROM_ONE, "num_epochs": FROM_ONE, "sparse_training.method": TEXT}

ROW: Rules = {
    "epoch": FROM_ONE,
    "step": FROM_ONE,
    "train_loss": NUMBER,
    "val_loss": NUMBER,
    "val_accuracy": SHARE,
    "learning_rate": POSITIVE_OR_ZERO,
    "images_per_second": SPEED,
}
ROW_IF_THERE: Rules = {"train_accuracy": SHARE, "density": DENSITY, "inherited": (lambda value: value is True, "true")}

RESULTS: Rules = {
    "test_accuracy_final": SHARE,
    "density": DENSITY,
    "density_asked": DENSITY_OR_NONE,
    "trainable_parameters": COUNT,
}
RESULTS_OF_A_SEED: Rules = {"test_accuracy_best": SHARE_OR_NONE, "best_val_accuracy": SHARE, "best_epoch": FROM_ONE}
RESULTS_OF_SEEDS: Rules = {
    "seeds": (lambda value: is_list_of(value, 0, lambda seed: is_whole(seed, 0)), "a list of whole numbers"),
    "test_accuracy_final_std": POSITIVE_OR_ZERO,
}
RESULTS_IF_THERE: Rules = {
    "dtype": (lambda value: value in DTYPES, f"one of: {', '.join(DTYPES)}"),
    "seed": COUNT,
    "test_accuracy_best": SHARE_OR_NONE,
    "test_accuracy_best_std": POSITIVE_OR_ZERO,
    "test_accuracy_ema": SHARE,
    "test_accuracy_ema_std": POSITIVE_OR_ZERO,
    "layer_densities": (
        lambda value: isinstance(value, dict) and all(is_number(density, 0, 1) for density in value.values()),
        "the density of each layer, numbers from 0 to 1",
    ),
}
# Results of older versions, and of several seeds, lack these.
ACCOUNTS: Mapping[str, Rules] = {
    "storage_bytes": {
        f"storage_bytes.{kind}.this": COUNT for kind in ("parameters", "supports", "optimizer_state", "checkpoint")
    },
    "flops": {
        f"flops.{of}.{kind}": POSITIVE_OR_ZERO
        for of in ("inference_of_an_image", "training_step")
        for kind in ("dense", "sparse", "offset")
    },
}
# The description of a user's own network in results and exported files; the versions of packages are beside it.
NETWORK: Rules = {
    "digest": TEXT,
    "parameters": (
        lambda value: (
            isinstance(value, dict)
            and all(isinstance(shape, list) and all(is_whole(size, 0) for size in shape) for shape in value.values())
        ),
        "the shape of each parameter, lists of whole numbers",
    ),
}
# The data that an exported network needs: the field "data" of results.json.
DATA: Rules = {
    "class_names": (lambda value: is_list_of(value, 0, lambda name: isinstance(name, str)), "a list of texts"),
    "image_size": (
        lambda value: is_whole(value, 1) or is_list_of(value, 2, lambda side: is_whole(side, 1)),
        "a whole number of at least 1, or two, height and width",
    ),
    "mean": (lambda value: is_of_channels(value, is_number), "three finite numbers, or one for grey images"),
    "std": (
        lambda value: is_of_channels(value, lambda number: is_number(number, 0) and number > 0),
        "three finite numbers above 0, or one for grey images",
    ),
}

# Earlier versions squashed the images of every network.
DATA_IF_THERE: Rules = {"fit": (lambda value: value in FITS, f"one of: {', '.join(FITS)}")}


def check_object(values: Any) -> None:
    """Raise ``ValueError`` unless ``values`` is a JSON object."""
    if not isinstance(values, dict):
        raise ValueError("it is no JSON object")


def check_config_fields(values: Any) -> None:
    """Raise ``ValueError`` unless ``values`` is the config of a run, nested or by dotted field."""
    _check(values, CONFIG, CONFIG_IF_THERE)


def check_results(values: Any) -> None:
    """Raise ``ValueError`` unless ``values`` is the content of a ``results.json``, of one seed or of several."""
    check_object(values)
    _check(values, {**RESULTS, **(RESULTS_OF_SEEDS if "seeds" in values else RESULTS_OF_A_SEED)}, RESULTS_IF_THERE)
    for account, rules in ACCOUNTS.items():
        if account in values:
            _check(values, rules)
    if "network" in values:  # it is built again, for images of this size, to check that it is the same
        check_network(values["network"])
        _check(values, {f"data.{field}": rule for field, rule in DATA.items()})


def check_network(values: Any) -> None:
    """Raise ``ValueError`` unless ``values`` describes a network of the user's own."""
    _check(values, NETWORK)


def check_data(values: Any) -> None:
    """Raise ``ValueError`` unless ``values`` describes a network's data: classes, image size, normalisation."""
    _check(values, DATA, DATA_IF_THERE)


def check_row(row: Any, before: Sequence[Mapping[str, Any]]) -> None:
    """Raise ``ValueError`` unless ``row`` is a row of a ``metrics.jsonl`` and follows the rows ``before``."""
    _check(row, ROW, ROW_IF_THERE)
    if row["epoch"] != len(before) + 1:
        raise ValueError(f"epoch is {row['epoch']}, but the epochs before it are {len(before)}")
    if before and row["step"] != row["epoch"] * before[0]["step"]:
        raise ValueError(f"step is {row['step']}, but each epoch has {before[0]['step']} steps")


def _check(values: Any, rules: Rules, if_there: Rules | None = None) -> None:
    """Check the fields that must be there, ``rules``, and the fields that may be there, ``if_there``."""
    check_object(values)
    for field, (is_allowed, allowed) in {**(if_there or {}), **rules}.items():
        value, is_there = find_field(values, field)
        if is_there and not is_allowed(value):
            raise ValueError(f"{field} is {reprlib.repr(value)}; it must be {allowed}")
        if not is_there and field in rules:
            raise ValueError(f"there is no field {field}")
