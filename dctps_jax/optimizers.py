"""Optimisers of the paper: SGD with momentum and Adam with coupled L2, AdamW, and Fixup's slower group."""

from collections.abc import Callable
from typing import Any

import jax
import optax

Steps = list[optax.GradientTransformation]


def sgd(decay: optax.GradientTransformation, momentum: float) -> Steps:
    """Return gradient + L2, then momentum without dampening."""
    return [decay, optax.trace(momentum)]


def adam(decay: optax.GradientTransformation, momentum: float) -> Steps:
    """Return gradient + L2, then Adam's moments: coupled as in PyTorch's Adam, not AdamW."""
    return [decay, optax.scale_by_adam()]


def adamw(decay: optax.GradientTransformation, momentum: float) -> Steps:
    """Return Adam's moments, then the L2 term: decoupled weight decay (Loshchilov & Hutter 2019)."""
    return [optax.scale_by_adam(), decay]


# Name → a function of the L2 term and the momentum of the config. It returns the steps from a gradient to an update,
# without the learning rate.
OPTIMIZERS: dict[str, Callable[[optax.GradientTransformation, float], Steps]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
}

# Fixup networks train these parameters at a tenth of the rate (Zhang et al. 2019, section 4).
FIXUP_SLOWDOWN = 0.1


def learning_rate_schedule(
    learning_rate: float, milestones: tuple[int, ...], decay_rate: float, steps_per_epoch: int
) -> optax.Schedule:
    """Return ``step → rate``: multiplied by ``decay_rate`` at the end of each epoch in ``milestones``.

    Epochs count from 1. With milestones (120, 160) the first 120 epochs run at the full rate. The original drops an
    epoch earlier.
    """
    if not milestones:
        return optax.constant_schedule(learning_rate)
    return optax.piecewise_constant_schedule(
        learning_rate, {milestone * steps_per_epoch: decay_rate for milestone in milestones}
    )


def milestones(settings: Any, steps_per_epoch: int, num_epochs: int) -> optax.Schedule:
    """Return :func:`learning_rate_schedule` for the fields of ``config.optimizer``."""
    return learning_rate_schedule(settings.learning_rate, settings.milestones, settings.decay_rate, steps_per_epoch)


# Name → a function of the fields of config.optimizer, the steps of an epoch and the number of epochs. It returns the
# learning rate as a function of the step.
SCHEDULES: dict[str, Callable[[Any, int, int], optax.Schedule]] = {"milestones": milestones}


def make_optimizer(
    name: str, learning_rate: optax.ScalarOrSchedule, *, momentum: float, weight_decay: float, fixup: bool
) -> optax.GradientTransformation:
    """Return the optimiser ``name``, a key of :data:`OPTIMIZERS`; ``ValueError`` for another name.

    L2 acts on every trainable parameter, α and BatchNorm included. ``fixup`` scales the steps of parameters named bias
    or scale by 0.1.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"there is no optimizer {name!r}; choose one of: {', '.join(OPTIMIZERS)}")
    steps = OPTIMIZERS[name](optax.add_decayed_weights(weight_decay), momentum)
    if fixup:
        steps.append(optax.masked(optax.scale(FIXUP_SLOWDOWN), _is_bias_or_scale))
    return optax.chain(*steps, optax.scale_by_learning_rate(learning_rate))


def _is_bias_or_scale(params: Any) -> Any:
    def slow(path, _) -> bool:
        name = str(path[-1].key)
        return "bias" in name or name == "scale"

    return jax.tree_util.tree_map_with_path(slow, params)
