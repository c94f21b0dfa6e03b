"""The fields of the optimiser, its learning rate and its losses."""

import math

from dctps_jax.field import Allowed, ByStep, Field, Need, at_least
from dctps_jax.fields.values import BELOW_1, FINITE, are_epochs, are_pairs
from dctps_jax.optimizers import DECAYS, OPTIMIZERS, SCHEDULES, rates_by_step, takes_momentum
from dctps_jax.user_functions import is_option

BY_MILESTONES = Need("optimizer.schedule", lambda name: name == "milestones")
ON_PLATEAU = Need("optimizer.schedule", lambda name: name == "plateau")

DECOUPLED = [name for name, optimizer in OPTIMIZERS.items() if optimizer.decoupled]

OPTIMIZER: dict[str, Field] = {
    "optimizer.name": Field("adam", "The optimiser, one of optax's. `muon` is for dense networks.", choices=OPTIMIZERS),
    "optimizer.options": Field(
        (),
        "More arguments of the optimiser, as in optax.",
        allowed=Allowed(lambda pairs: are_pairs(pairs, is_option), "(name, value) pairs, e.g. (('b1', 0.95),)"),
        added=True,
    ),
    "optimizer.learning_rate": Field(
        0.001,
        "The full learning rate: at the start, or after the warm-up or the rise of `one_cycle`.",
        allowed=Allowed(lambda value: 0 < value < math.inf, "above 0 and finite"),
    ),
    "optimizer.kernel_rate": Field(
        1.0,
        "A factor of the learning rate of kernels, not of α, BatchNorm and biases. 0: kernels are not trained.",
        allowed=FINITE,
        added=True,
    ),
    "optimizer.momentum": Field(
        0.9,
        f"The momentum of {', '.join(f'`{name}`' for name in OPTIMIZERS if takes_momentum(name))}.",
        allowed=BELOW_1,
        needs=(Need("optimizer.name", takes_momentum),),
    ),
    "optimizer.weight_decay": Field(
        5e-4,
        f"L2 on every trainable parameter; decoupled with {', '.join(f'`{name}`' for name in DECOUPLED)}.",
        allowed=FINITE,
    ),
    "optimizer.decay": Field(
        "all",
        "Which parameters the weight decay acts on: all, as in the paper, or kernels only.",
        choices=DECAYS,
        added=True,
    ),
    "optimizer.clip_norm": Field(
        0.0,
        "Scale all gradients down together if their common norm is larger than this; 0: never.",
        allowed=FINITE,
        added=True,
    ),
    "optimizer.accumulate_steps": Field(
        1,
        "Change the parameters only once in this many steps, by the mean gradient of these steps.",
        allowed=at_least(1),
        added=True,
    ),
    "optimizer.label_smoothing": Field(
        0.0,
        "The share of a label that is spread over all classes (Szegedy et al. 2016).",
        allowed=BELOW_1,
        added=True,
    ),
    "optimizer.ema_decay": Field(
        0.0,
        "Keep a moving average of the weights with this decay a step, e.g. 0.999, and test it as well; 0: none.",
        allowed=BELOW_1,
        added=True,
    ),
    "optimizer.schedule": Field(
        "milestones",
        "The learning rate as a function of the training step: `constant`, `milestones` (lower after each), `cosine` "
        "(half of one, Loshchilov & Hutter 2017), `one_cycle` (Smith & Topin 2018), or `plateau` (lower where the "
        "training loss stays).",
        choices=SCHEDULES,
        added=True,
        by_step=ByStep(rates_by_step, "learning rate"),
    ),
    "optimizer.warmup_epochs": Field(
        0.0,
        "The learning rate rises linearly for this many epochs; with `one_cycle` along a cosine (0: 30 % of all).",
        allowed=FINITE,
        added=True,
    ),
    "optimizer.patience": Field(
        10,
        "With `plateau`: after this many epochs without a lower loss, multiply the learning rate by `decay_rate`.",
        allowed=at_least(1),
        needs=(ON_PLATEAU,),
        added=True,
    ),
    "optimizer.milestones": Field(
        (),
        "At the end of each of these epochs, multiply the learning rate by `decay_rate`.",
        allowed=Allowed(are_epochs, "whole epochs of at least 1 in increasing order, e.g. (120, 160)"),
        needs=(BY_MILESTONES,),
    ),
    "optimizer.decay_rate": Field(
        0.1,
        "The factor of the learning rate at each milestone, and on a plateau.",
        allowed=Allowed(lambda value: 0 < value <= 1, "above 0 and at most 1"),
        needs=(BY_MILESTONES, ON_PLATEAU),
    ),
}
