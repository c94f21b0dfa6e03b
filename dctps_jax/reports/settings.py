"""The setting of a run, i.e. the fields that may change its numbers, and how figures and tables name it."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dctps_jax.data.sources import reads_any_folder
from dctps_jax.defaults import FIELDS
from dctps_jax.field import Need
from dctps_jax.pruning import trains_all_weights

Setting = tuple[tuple[str, Any], ...]
# What the tables and legends name in their own way; of other fields they name those that differ.
NAMED = ("pruning.density", "pruning.method", "pruning.rewind_epoch", "sparse_training.method", "model.offset")
SOURCE_RUN = "pruning.run"
MAX_FIELDS_IN_LABEL = 3  # where more differ, the figures have the names of runs instead


def is_dense(config: Mapping[str, Any]) -> bool:
    """Return whether a config by dotted field is of a network that trains all weights."""
    method, density = config.get("pruning.method", ""), config.get("pruning.density", 0)
    densities = config.get("pruning.layer_densities", ())
    return trains_all_weights(method, density, () if densities == "[]" else densities)  # records hold lists as texts


def has_effect(field: str, config: Mapping[str, Any]) -> bool:
    """Return whether a field of a config by dotted field can change the run's numbers, given its other fields."""
    if is_dense(config) and field.startswith("pruning.") and field != "pruning.density":
        return False
    needs = FIELDS[field].needs if field in FIELDS else ()
    return not needs or any(_is_met(need, config) for need in needs)


def _is_met(need: Need, config: Mapping[str, Any]) -> bool:
    if need.field in config:
        return need.test(config[need.field])
    needed = FIELDS[need.field]
    return not needed.added or need.test(needed.default)


def method_name(setting: Setting) -> str:
    """Return the method of pruning, with that of sparse training where weights move; "dense" at density 1.

    Masks of another run have its name. Lottery tickets have the epoch whose weights they start from: the rounds of one
    ticket, each of which prunes the run before it, are one method at several densities.
    """
    values = dict(setting)
    method = "dense" if is_dense(values) else values["pruning.method"]
    if method == "from_run":
        epoch = values.get("pruning.rewind_epoch", -1)
        method += f" at epoch {epoch}" if epoch >= 0 else f" {Path(str(values.get('pruning.run', ''))).name}"
        method = method.strip()
    moves = values.get("sparse_training.method", "static")
    return method if moves == "static" else f"{method} + {moves}"


def differing(settings: Sequence[Setting]) -> list[str]:
    """Return the fields besides :data:`NAMED` that differ among the settings in which they have an effect.

    The run that masks or weights come from counts only if nothing else tells two settings apart.
    """
    configs = [dict(setting) for setting in settings]
    fields = sorted({field for config in configs for field in config} - {*NAMED, SOURCE_RUN})
    found = [
        field for field in fields if len({config.get(field) for config in configs if has_effect(field, config)}) > 1
    ]
    others = {(method_name(setting), *values_of(setting, [*NAMED, *found]).items()) for setting in settings}
    return found if len(others) == len(set(settings)) else sorted([*found, SOURCE_RUN])


def values_of(setting: Setting, fields: Iterable[str]) -> dict[str, Any]:
    """Return the values of those fields that have an effect in a setting."""
    config = dict(setting)
    return {field: config.get(field) for field in fields if has_effect(field, config)}


def title_of(configs: Iterable[Mapping[str, Any]]) -> str:
    """Return the networks and data sets of configs by dotted field: "lenet on cifar10". A folder goes by its name."""
    configs = list(configs)
    networks = {config["model.name"] for config in configs}
    sources = {
        (reads_any_folder(config["data.name"]) and Path(config.get("data.dir", "")).name) or config["data.name"]
        for config in configs
    }
    return f"{', '.join(sorted(networks))} on {', '.join(sorted(sources))}"
