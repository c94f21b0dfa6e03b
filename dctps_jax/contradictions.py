"""Fields of a config that contradict each other. Each function returns the sentence for the user, or None.

Functions that they call may raise :class:`~dctps_jax.errors.UserError` themselves. To add a check, write a function and
put it into :data:`CONTRADICTIONS`.
"""

import math
from collections.abc import Callable
from typing import Any

from dctps_jax import data, models, pruning
from dctps_jax.defaults import FIELDS
from dctps_jax.optimizers import check_options as check_options_of_optimizer
from dctps_jax.user_functions import as_options, check_options, find_function, is_import_path


def _last_seed_too_large(config: Any) -> str | None:
    if config.seed + config.num_seeds > 2**32:
        return f"config.seed is {config.seed} and config.num_seeds {config.num_seeds}; the last seed must be below 2^32"
    return None


def _moments_incomplete(config: Any) -> str | None:
    mean, std = config.data.mean, config.data.std
    are_numbers = all(isinstance(number, int | float) and math.isfinite(number) for number in (*mean, *std))
    if not are_numbers or len(mean) not in (0, 1, 3) or len(mean) != len(std) or any(number <= 0 for number in std):
        return (
            f"config.data.mean is {mean!r} and config.data.std {std!r}; give three numbers each (one each for "
            "grey images), the deviations above 0, or () for both"
        )
    return None


def _masks_without_run(config: Any) -> str | None:
    if config.pruning.method == "from_run" and not config.pruning.run:
        return "config.pruning.run is empty; name the directory of the run whose masks from_run is to take"
    return None


def _rewinding_impossible(config: Any) -> str | None:
    settings = config.pruning
    if settings.rewind_epoch >= 0 and settings.method != "from_run":
        return (
            f"config.pruning.rewind_epoch is {settings.rewind_epoch} and config.pruning.method {settings.method!r}; "
            "only 'from_run' rewinds, leave it at -1"
        )
    if settings.rewind_epoch >= config.num_epochs:
        return (
            f"config.pruning.rewind_epoch is {settings.rewind_epoch}, where the run would begin, and it ends with "
            f"config.num_epochs, {config.num_epochs}; rewind to an earlier epoch, or raise num_epochs"
        )
    return None


def _no_weights_to_move(config: Any) -> str | None:
    settings = config.pruning
    is_dense = pruning.trains_all_weights(settings.method, settings.density, settings.layer_densities)
    if config.sparse_training.method != "static" and is_dense:
        return (
            f"config.sparse_training.method is {config.sparse_training.method!r} and config.pruning.density 1.0; a "
            "dense network has no weights to move, choose a density below 1 or 'static'"
        )
    return None


def _gradual_pruning_unusable(config: Any) -> str | None:
    settings = config.sparse_training
    if settings.method != "gmp":
        return None
    if config.pruning.method not in pruning.ALLOCATIONS:
        return (
            f"config.sparse_training.method is 'gmp' and config.pruning.method {config.pruning.method!r}; gmp prunes "
            "by the magnitude of the trained weights, so the method only says how many each layer keeps: choose one "
            f"of {', '.join(pruning.ALLOCATIONS)}"
        )
    if settings.initial_density <= config.pruning.density:
        return (
            f"config.sparse_training.initial_density is {settings.initial_density} and config.pruning.density "
            f"{config.pruning.density}; gmp prunes from the initial one to the other, give a larger initial density"
        )
    if settings.begin_fraction >= settings.stop_fraction:
        return (
            f"config.sparse_training.begin_fraction is {settings.begin_fraction} and stop_fraction "
            f"{settings.stop_fraction}; pruning must begin before it stops"
        )
    if config.execution.form == "compact":
        return (
            "config.execution.form is 'compact' and config.sparse_training.method 'gmp', which starts with many "
            "weights and prunes them; choose 'auto' or 'masked'"
        )
    return None


def _pattern_contradicted(config: Any) -> str | None:
    settings = config.pruning
    if not settings.pattern or (settings.method == "from_run" and settings.rewind_epoch < 0):
        return None
    if config.sparse_training.method != "static":
        return (
            f"config.pruning.pattern is {settings.pattern!r} and config.sparse_training.method "
            f"{config.sparse_training.method!r}, which changes the weights that are trained and breaks the pattern; "
            "choose 'static', or leave the pattern out"
        )
    allocation = settings.method if settings.method in pruning.ALLOCATIONS else settings.allocation
    return pruning.contradiction(settings.pattern, settings.density, allocation, "config.pruning.")


def _old_name_of_method(config: Any) -> str | None:
    renamed = FIELDS["execution.method"].renamed
    for pattern, method in config.execution.layer_methods:
        if method in renamed:
            return (
                f"config.execution.layer_methods has {(pattern, method)!r}; {method!r} is now called "
                f"{renamed[method]!r}, give this name"
            )
    return None


def _own_network_unusable(config: Any) -> str | None:
    name = config.model.name
    if not is_import_path(name):
        for field in ("options", "exclude"):
            if config.model[field]:
                return f"config.model.{field} is for networks of your own; {name} has none, leave it at ()"
        return None
    for field in ("init", "dtype"):
        default = FIELDS[f"model.{field}"].default
        if config.model[field] != default:
            return (
                f"config.model.{field} is {config.model[field]!r}, which {name} cannot know; leave it at {default!r} "
                "and give the network an argument of its own in config.model.options"
            )
    check_options("config.model.name", name, as_options(config.model.options))
    return None


def _optimizer_unusable(config: Any) -> str | None:
    settings = config.optimizer
    check_options_of_optimizer(settings.name, as_options(settings.options))
    if settings.name == "muon":
        is_muon = "config.optimizer.name is 'muon', which orthogonalises whole matrices and is for dense networks"
        if config.pruning.method == "from_run":
            return f"{is_muon}, but config.pruning.method is 'from_run'; choose another optimiser"
        if config.pruning.density < 1:
            return (
                f"{is_muon}, but config.pruning.density is {config.pruning.density}; choose density 1.0 or another "
                "optimiser"
            )
    if settings.warmup_epochs >= config.num_epochs:
        return (
            f"config.optimizer.warmup_epochs is {settings.warmup_epochs} and config.num_epochs {config.num_epochs}; "
            "warm up for fewer epochs than the run has"
        )
    return None


def _own_data_missing(config: Any) -> str | None:
    if is_import_path(config.data.name):
        find_function("config.data.name", config.data.name)
    return None


def _options_without_resnet(config: Any) -> str | None:
    options = ("width", "stable", "stem")
    defaults = [FIELDS[f"model.{option}"].default for option in options]
    if config.model.name not in models.RESNETS and [config.model[option] for option in options] != defaults:
        return (
            f"config.model.width, config.model.stable and config.model.stem are for ResNets; {config.model.name} has "
            f"none of them, leave them at {', '.join(map(str, defaults))}"
        )
    return None


def _alpha_of_fixup(config: Any) -> str | None:
    if config.model.alpha_init != 1 and models.is_fixup(config.model.name):
        return (
            f"config.model.alpha_init is {config.model.alpha_init}, and {config.model.name} has its own start; leave "
            "it at 1.0, or choose another network"
        )
    return None


def _crop_unusable(config: Any) -> str | None:
    settings = config.data
    if settings.crop == "padded":
        return None
    if not settings.augment:
        return (
            f"config.data.crop is {settings.crop!r} and config.data.augment False; without augmentation nothing is "
            "cropped at random, leave crop at 'padded'"
        )
    if settings.image_size == 0:
        return (
            f"config.data.crop is {settings.crop!r} and config.data.image_size 0; give the size that the crops are "
            "brought to"
        )
    if settings.streaming == "off":
        return (
            f"config.data.crop is {settings.crop!r} and config.data.streaming 'off'; such crops are taken out of the "
            "files while training, leave it at 'auto'"
        )
    if not getattr(data.SOURCES.get(settings.name), "find", None):
        folders = ", ".join(name for name, source in data.SOURCES.items() if source.find)
        return (
            f"config.data.crop is {settings.crop!r} and config.data.name {settings.name!r}; such crops are taken out "
            f"of image files while training, choose 'padded' or one of: {folders}"
        )
    return None


def _keeps_epochs_after_the_last(config: Any) -> str | None:
    if max(config.keep_epochs, default=0) > config.num_epochs:
        return (
            f"config.keep_epochs is {tuple(config.keep_epochs)} and config.num_epochs {config.num_epochs}; an epoch "
            "that the run does not have cannot be kept, leave it out or raise num_epochs"
        )
    return None


CONTRADICTIONS: tuple[Callable[[Any], str | None], ...] = (
    _last_seed_too_large,
    _moments_incomplete,
    _masks_without_run,
    _rewinding_impossible,
    _no_weights_to_move,
    _gradual_pruning_unusable,
    _pattern_contradicted,
    _old_name_of_method,
    _options_without_resnet,
    _alpha_of_fixup,
    _own_network_unusable,
    _own_data_missing,
    _optimizer_unusable,
    _crop_unusable,
    _keeps_epochs_after_the_last,
)
