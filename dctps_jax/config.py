"""Check a config before anything is compiled or written: its fields, their values, and how they fit together."""

from typing import Any

from dctps_jax import models
from dctps_jax.contradictions import CONTRADICTIONS
from dctps_jax.defaults import FIELDS
from dctps_jax.errors import UserError, did_you_mean
from dctps_jax.field import flat_fields
from dctps_jax.ops import target


def resolve(config: Any) -> Any:
    """Return a copy of a config as a run uses it: its references resolved, and None in one spelling.

    In every field that may be None, "None" in any case and "" become None.
    """
    config = config.copy_and_resolve_references()
    for name, value in list(flat_fields(config)):
        if name in FIELDS and FIELDS[name].optional and str(value).lower() in ("none", ""):
            config.update_from_flattened_dict({name: None})
    return config


def check_config(config: Any, check_devices: bool = True) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` for the first field or value that cannot work; say what is allowed.

    The config stays unchanged; :func:`resolve` makes one that a run can use. ``check_devices=False`` does not ask JAX
    for its devices: on some platforms that would reserve them for this process.
    """
    check_names(config)
    values = dict(flat_fields(config))
    for name in FIELDS:
        check_value(name, values[name])
    for find_contradiction in CONTRADICTIONS:
        if contradiction := find_contradiction(config):
            raise UserError(contradiction)
    if check_devices:
        devices = len(target.training_devices())
        _check_shards(config.distributed.shards, devices)
        _check_batches(config, devices)


def check_all_is_read(config: Any) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` for a setting that nothing reads, given the other fields.

    ``pruning.density`` may be set with ``from_run``, even if that takes the masks of a run and ignores the density.
    """
    values = dict(flat_fields(config))
    for name, field in FIELDS.items():
        value = tuple(values[name]) if isinstance(values[name], list) else values[name]
        if name == "pruning.density" or not field.needs or value == field.default:
            continue
        if not any(need.test(values[need.field]) for need in field.needs):
            needed = field.needs[0].field
            tests = [need.test for need in field.needs if need.field == needed]
            choices = (*FIELDS[needed].choices, None) if FIELDS[needed].optional else FIELDS[needed].choices
            readers = [str(choice) for choice in choices if any(test(choice) for test in tests)]
            raise UserError(
                f"config.{name} is {value!r}, which has no effect while config.{needed} is {values[needed]!r}; leave "
                f"it at {field.default!r}, or set config.{needed} to {'one of: ' * (len(readers) > 1)}"
                f"{', '.join(readers)}"
            )
    if config.model.init != FIELDS["model.init"].default and models.is_fixup(config.model.name):
        raise UserError(
            f"config.model.init is {config.model.init!r}, and {config.model.name} has its own start; leave it at "
            f"{FIELDS['model.init'].default!r}"
        )


def check_names(config: Any) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` for a field that does not exist, and for one that is missing."""
    names = dict(flat_fields(config))
    for name in names:
        if name not in FIELDS:
            raise UserError(unknown_field(name))
    for name in FIELDS:
        if name not in names:
            raise UserError(f"the config has no field config.{name}; build it on dctps_jax.defaults.get_config()")


def check_value(name: str, value: Any) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` for a value that a field can never have, whatever the other fields."""
    check_type(name, value)
    field = FIELDS[name]
    if value is None:
        return
    if field.renamed and value in field.renamed:  # a list cannot be looked up
        raise UserError(f"config.{name} is {value!r}; it is now called {field.renamed[value]!r}, give this name")
    if value in field.choices or (field.allowed and field.allowed.test(value)):
        return
    hint = did_you_mean(value, field.choices)
    if field.choices:
        names = ", ".join(choice or "''" for choice in field.choices)
        allowed = f"None or one of: {names}" if field.optional else f"one of: {names}"
        other = f"; or {field.allowed.words}" if field.allowed else ""
        raise UserError(f"config.{name} is {value!r}{hint}; it must be {allowed}{other}")
    if field.allowed:
        raise UserError(f"config.{name} is {value!r}; it must be {field.allowed.words}")


def check_type(name: str, value: Any) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` where a field's value has another type than the field."""
    field = FIELDS[name]
    if not field.has_type(value):
        raise UserError(f"config.{name} is {value!r}; it must be {field.type_words}")


def unknown_field(name: str) -> str:
    """Return the message for a field that does not exist."""
    if name == "multi_host":
        return "config.multi_host is gone; config.distributed.coordinator='auto' makes JAX find the processes"
    return f"there is no field config.{name}{did_you_mean(name, FIELDS)}; docs/configuration.md has them all"


def _check_shards(shards: int, devices: int) -> None:
    if devices % shards:
        possible = ", ".join(str(number) for number in range(1, devices + 1) if devices % number == 0)
        raise UserError(
            f"config.distributed.shards is {shards}, but there are {devices} devices, which must be a multiple of it; "
            f"choose one of: {possible}"
        )


def _check_batches(config: Any, devices: int) -> None:
    for name in ("batch_size", "eval_batch_size"):
        if config[name] % devices:
            raise UserError(
                f"config.{name} is {config[name]}, which {devices} devices cannot share evenly; choose a multiple of "
                f"{devices}, e.g. {max(1, round(config[name] / devices)) * devices}"
            )
