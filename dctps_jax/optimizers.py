"""Optimisers and learning rates by name: the paper's, and more from optax.

A compact kernel is a vector of its trained weights. The optimisers in :data:`OPTIMIZERS` therefore treat each weight by
itself, except muon, which is for dense networks.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from dctps_jax.arguments import check_choice
from dctps_jax.errors import UserError, first_line


class Optimizer(NamedTuple):
    """How gradients become updates, before the learning rate is applied.

    ``scale`` makes the transformation; its arguments are the options of the optimiser. An argument ``momentum`` gets
    ``config.optimizer.momentum``. Weight decay is added to the gradient before it (L2), or, if ``decoupled``, to the
    update after it (Loshchilov & Hutter 2019).
    """

    scale: Callable[..., optax.GradientTransformation]
    decoupled: bool = False


def muon(**options: Any) -> optax.GradientTransformation:
    """Return Muon (Jordan et al. 2024) for matrices, Adam for other parameters."""
    return optax.chain(contrib.muon(1.0, **options), optax.scale(-1.0))


OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Optimizer(lambda momentum: optax.trace(momentum)),
    "nesterov": Optimizer(lambda momentum: optax.trace(momentum, nesterov=True)),
    "adam": Optimizer(optax.scale_by_adam),
    "adamw": Optimizer(optax.scale_by_adam, decoupled=True),
    "nadam": Optimizer(partial(optax.scale_by_adam, nesterov=True)),
    "nadamw": Optimizer(partial(optax.scale_by_adam, nesterov=True), decoupled=True),
    "lion": Optimizer(optax.scale_by_lion, decoupled=True),
    "adan": Optimizer(optax.scale_by_adan, decoupled=True),
    "adabelief": Optimizer(optax.scale_by_belief),
    "adadelta": Optimizer(optax.scale_by_adadelta),
    "adagrad": Optimizer(optax.scale_by_rss),
    "adamax": Optimizer(optax.scale_by_adamax),
    "amsgrad": Optimizer(optax.scale_by_amsgrad),
    "radam": Optimizer(optax.scale_by_radam),
    "rmsprop": Optimizer(optax.scale_by_rms),
    "sign_sgd": Optimizer(optax.scale_by_sign),
    "muon": Optimizer(muon, decoupled=True),
}

# Which parameters decay.
DECAYS: tuple[str, ...] = ("all", "kernels")

# Fixup networks train these parameters at a tenth of the rate (Zhang et al. 2019, section 4).
FIXUP_SLOWDOWN = 0.1


def takes_momentum(name: str) -> bool:
    """Return whether an optimiser takes ``config.optimizer.momentum``."""
    return name in OPTIMIZERS and "momentum" in inspect.signature(OPTIMIZERS[name].scale).parameters


def options_of(name: str) -> dict[str, Any]:
    """Return the options of an optimiser, with their defaults."""
    scale = contrib.muon if name == "muon" else OPTIMIZERS[name].scale
    fixed = {"momentum", "learning_rate", *getattr(scale, "keywords", {})}
    parameters = inspect.signature(scale).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.name not in fixed}


def learning_rate_schedule(
    learning_rate: float, milestones: tuple[int, ...], decay_rate: float, steps_per_epoch: int
) -> optax.Schedule:
    """Return ``step → rate``: multiplied by ``decay_rate`` at the end of each epoch in ``milestones``.

    Epochs count from 1. With milestones (120, 160) the first 120 epochs run at the full rate. The original drops the
    rate one epoch earlier.
    """
    if not milestones:
        return optax.constant_schedule(learning_rate)
    return optax.piecewise_constant_schedule(
        learning_rate, {milestone * steps_per_epoch: decay_rate for milestone in milestones}
    )


def warmed_up(schedule: optax.Schedule, warmup_steps: int) -> optax.Schedule:
    """Return ``step → rate``: ``schedule``, multiplied by 1/n, 2/n, … in its first n = ``warmup_steps`` steps."""
    if warmup_steps == 0:
        return schedule
    return lambda step: schedule(step) * jnp.minimum(1, (step + 1) / warmup_steps)


def warmup_steps_of(settings: Any, steps_per_epoch: int) -> int:
    """Return how many steps the warm-up of ``config.optimizer`` takes."""
    return round(settings.warmup_epochs * steps_per_epoch)


def milestones(settings: Any, steps_per_epoch: int, num_epochs: int) -> optax.Schedule:
    """Return :func:`learning_rate_schedule` for the fields of ``config.optimizer``, after a warm-up."""
    schedule = learning_rate_schedule(settings.learning_rate, settings.milestones, settings.decay_rate, steps_per_epoch)
    return warmed_up(schedule, warmup_steps_of(settings, steps_per_epoch))


def constant(settings: Any, steps_per_epoch: int, num_epochs: int) -> optax.Schedule:
    """Return one rate for all steps, after a warm-up."""
    return warmed_up(optax.constant_schedule(settings.learning_rate), warmup_steps_of(settings, steps_per_epoch))


def cosine(settings: Any, steps_per_epoch: int, num_epochs: int) -> optax.Schedule:
    """Return half a cosine from the full rate, at the end of the warm-up, to 0 at the end of training.

    Loshchilov & Hutter 2017, without restarts.
    """
    warmup_steps = warmup_steps_of(settings, steps_per_epoch)
    falling = optax.cosine_decay_schedule(settings.learning_rate, num_epochs * steps_per_epoch - warmup_steps)
    return warmed_up(lambda step: falling(jnp.maximum(step - warmup_steps, 0)), warmup_steps)


def one_cycle(settings: Any, steps_per_epoch: int, num_epochs: int) -> optax.Schedule:
    """Return a cosine from 1/25 of the rate up to it, then one down to 1/10,000 of the start (Smith & Topin 2018).

    The rise takes the epochs of the warm-up, or 30 % of the training if there is no warm-up.
    """
    rising = settings.warmup_epochs / num_epochs or 0.3
    return optax.cosine_onecycle_schedule(num_epochs * steps_per_epoch, settings.learning_rate, pct_start=rising)


# Name → a function of the fields of config.optimizer, the steps of an epoch and the number of epochs. It returns the
# learning rate as a function of the step. With "plateau" the rate also follows the loss, see make_optimizer.
SCHEDULES: dict[str, Callable[[Any, int, int], optax.Schedule]] = {
    "milestones": milestones,
    "constant": constant,
    "cosine": cosine,
    "one_cycle": one_cycle,
    "plateau": constant,
}


def rates_by_step(config: Any, steps_per_epoch: int, num_steps: int) -> np.ndarray:
    """Return the learning rates of the first ``num_steps`` steps of a run, without the effect of a plateau.

    They are in float64, so that different schedules do not round to the same rate.
    """
    schedule = SCHEDULES[config.optimizer.schedule](config.optimizer, steps_per_epoch, config.num_epochs)
    with jax.enable_x64(True):
        return np.asarray(jax.vmap(schedule)(jnp.arange(num_steps)))


def make_optimizer(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float,
    weight_decay: float,
    fixup: bool,
    options: Mapping[str, Any] = MappingProxyType({}),
    decay: str = "all",
    clip_norm: float = 0.0,
    accumulate_steps: int = 1,
    kernel_rate: float = 1.0,
    plateau: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
    """Return the optimiser ``name``, a key of :data:`OPTIMIZERS`, with the ``options`` that :func:`options_of` lists.

    - ``decay``: "all": weight decay acts on every trainable parameter, α and BatchNorm included; "kernels": on kernels.
    - ``fixup`` scales the steps of parameters named bias or scale by 0.1.
    - ``clip_norm``: the gradients of all parameters are scaled down together to this norm if theirs is larger; 0:
      never.
    - ``accumulate_steps``: parameters change once in this many steps, by the mean gradient of these steps. The learning
      rate counts all steps.
    - ``kernel_rate``: a factor of the learning rate of kernels.
    - ``plateau``: scales the updates by the loss, see :func:`reduce_on_plateau`.

    Raises :class:`~dctps_jax.errors.UserError` for a name or an option that does not exist.
    """
    if name not in OPTIMIZERS:
        raise UserError(f"there is no optimizer {name!r}; choose one of: {', '.join(OPTIMIZERS)}")
    check_options(name, options)
    check_choice("decay", decay, DECAYS)
    scale, decoupled = OPTIMIZERS[name]
    given = {"momentum": momentum} if takes_momentum(name) else {}
    decayed = optax.add_decayed_weights(weight_decay, mask=None if decay == "all" else _is_kernel)
    steps = [scale(**given, **options), decayed] if decoupled else [decayed, scale(**given, **options)]
    if clip_norm:
        steps.insert(0, optax.clip_by_global_norm(clip_norm))
    if accumulate_steps > 1:
        steps = [optax.MultiSteps(optax.chain(*steps), accumulate_steps).gradient_transformation()]
    if fixup:
        steps.append(optax.masked(optax.scale(FIXUP_SLOWDOWN), _is_bias_or_scale))
    if kernel_rate != 1:
        steps.append(optax.masked(optax.scale(kernel_rate), _is_kernel))
    if plateau is not None:
        steps.append(plateau)
    return optax.chain(*steps, optax.scale_by_learning_rate(learning_rate))


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` for an option that an optimiser does not have or cannot take."""
    for option in options:
        if option not in options_of(name):
            known = ", ".join(options_of(name)) or "none"
            raise UserError(f"optimizer {name!r} has no option {option!r}; its options are: {known}")
    if not options:
        return
    given = {"momentum": 0.9} if takes_momentum(name) else {}
    try:
        jax.eval_shape(lambda: _step_of(OPTIMIZERS[name].scale(**given, **options)))
    except Exception as error:  # optax raises whatever a value makes its arithmetic raise
        raise UserError(f"optimizer {name!r} cannot take the options {dict(options)}: {first_line(error)}") from error


def _step_of(optimizer: optax.GradientTransformation) -> Any:
    params = {"kernel": jnp.ones((2, 2))}
    return optimizer.update(params, optimizer.init(params), params)


def reduce_on_plateau(settings: Any, steps_per_epoch: int) -> optax.GradientTransformation:
    """Return what multiplies the rate by ``decay_rate`` after ``patience`` epochs without a lower loss.

    The loss is the mean training loss of as many steps as an epoch has, so that the optimiser's state holds all of it.
    """
    return contrib.reduce_on_plateau(
        factor=settings.decay_rate, patience=settings.patience, accumulation_size=steps_per_epoch
    )


def rate_scale(opt_state: Any) -> float:
    """Return the factor by which a plateau has multiplied the learning rate so far."""
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, contrib.ReduceLROnPlateauState))
    scales = [np.asarray(node.scale).item() for node in nodes if isinstance(node, contrib.ReduceLROnPlateauState)]
    return scales[0] if scales else 1.0


def _is_kernel(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: str(path[-1].key) == "kernel", params)


def _is_bias_or_scale(params: Any) -> Any:
    def slow(path, _) -> bool:
        name = str(path[-1].key)
        return "bias" in name or name == "scale"

    return jax.tree_util.tree_map_with_path(slow, params)
