"""Make the objects that a config asks for: the data set, the numbers of a step, the optimiser."""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optax

from dctps_jax import data, models
from dctps_jax.data.batches import Normalization, Subset, normalization_of
from dctps_jax.data.regularization import Regularization
from dctps_jax.errors import UserError, some_of
from dctps_jax.optimizers import SCHEDULES, make_optimizer, reduce_on_plateau, warmup_steps_of
from dctps_jax.pruning.dynamic import MovingSchedule, update_schedule
from dctps_jax.training.step_spec import LOSS_SCALES, StepSpec, default_steps_per_dispatch
from dctps_jax.training.streaming import crops_files
from dctps_jax.user_functions import as_options

logger = logging.getLogger("dctps_jax")

# How many classes a message names.
MAX_SHOWN = 5


def load_data(config: Any, max_decoded_bytes: float = math.inf) -> data.Dataset:
    """Return the data set that ``config.data`` names. Print what it holds, and warn of classes that cannot be learnt.

    Images in files that would take more than ``max_decoded_bytes`` are not decoded.
    """
    dataset = data.load(
        config.data.name,
        dir=config.data.dir,
        cache_dir=config.data.cache_dir,
        image_size=config.data.image_size,
        download=config.data.download,
        max_pixels=config.data.max_pixels,
        channels=config.data.channels,
        seed=config.seed,
        fit=config.data.fit,
        crop=config.data.crop,
        max_decoded_bytes=max_decoded_bytes,
    )
    place = f" in {config.data.dir}" if config.data.dir else ""
    print(f"{config.data.name}{place}: {dataset.summary}")
    if classes := dataset.untrained_classes:
        names = [dataset.class_names[number] for number in classes]
        in_test = int(np.isin(dataset.test_labels, classes).sum())
        logger.warning(
            "%s has no training images of %d of its %d classes (%s), and %d test images of them; are the labels "
            "numbered from 0, in the order of the names?",
            config.data.name,
            len(names),
            dataset.num_classes,
            some_of(names, MAX_SHOWN),
            in_test,
        )
    return dataset


def make_step_spec(
    config: Any, dataset: data.Dataset, train: Subset, platform: str, is_streamed: bool = False
) -> StepSpec:
    """Return the fixed numbers of a run on ``platform``.

    Raises :class:`~dctps_jax.errors.UserError` if a batch is larger than the split, or a cutout than the images.
    """
    steps_per_epoch = len(train.labels) // config.batch_size
    if steps_per_epoch == 0:
        raise UserError(
            f"config.batch_size is {config.batch_size}, but there are only {len(train.labels)} training images; choose "
            f"at most {len(train.labels)}"
        )
    height, width = dataset.train_images.shape[1:3]
    if config.data.cutout > max(height, width):
        raise UserError(
            f"config.data.cutout is {config.data.cutout}, but the images have {height}×{width} pixels; choose at most "
            f"{max(height, width)}"
        )
    window_bytes = config.batch_size * math.prod(dataset.train_images.shape[1:]) if is_streamed else 0
    return StepSpec(
        batch_size=config.batch_size,
        eval_batch_size=config.eval_batch_size,
        steps_per_epoch=steps_per_epoch,
        steps_per_dispatch=config.steps_per_dispatch or default_steps_per_dispatch(platform, window_bytes),
        normalization=choose_normalization(config, dataset, train),
        augmented=config.data.augment,
        seed=config.seed,
        sparse_training=config.sparse_training.method,
        updates=update_schedule(config, steps_per_epoch),
        regularization=Regularization(
            cutout=config.data.cutout,
            random_erasing=config.data.random_erasing,
            mixup=config.data.mixup,
            label_smoothing=config.optimizer.label_smoothing,
            num_classes=dataset.num_classes,
        ),
        ema_decay=config.optimizer.ema_decay,
        only_flips=crops_files(config),
        loss_scale=LOSS_SCALES.get(config.model.dtype, 1.0),
    )


def make_optimizer_and_schedule(
    config: Any, steps_per_epoch: int
) -> tuple[optax.GradientTransformation, Callable[[Any], Any]]:
    """Return the optimiser of ``config.optimizer``, and its learning rate as a function of the step.

    Raises :class:`~dctps_jax.errors.UserError` if the run has too few steps for them.
    """
    options, num_steps = config.optimizer, config.num_epochs * steps_per_epoch
    if warmup_steps_of(options, steps_per_epoch) >= num_steps:
        raise UserError(
            f"config.optimizer.warmup_epochs is {options.warmup_epochs}, which are all of the {num_steps} steps of the "
            "run; warm up for fewer"
        )
    if options.accumulate_steps > num_steps:
        raise UserError(
            f"config.optimizer.accumulate_steps is {options.accumulate_steps}, and the run has {num_steps} steps, so "
            "that the parameters would never change; lower it, or train longer"
        )
    schedule = SCHEDULES[options.schedule](options, steps_per_epoch, config.num_epochs)
    optimizer = make_optimizer(
        options.name,
        schedule,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        fixup=models.is_fixup(config.model.name),
        options=as_options(options.options),
        decay=options.decay,
        clip_norm=options.clip_norm,
        accumulate_steps=options.accumulate_steps,
        kernel_rate=options.kernel_rate,
        plateau=reduce_on_plateau(options, steps_per_epoch) if options.schedule == "plateau" else None,
    )
    return optimizer, schedule


def choose_normalization(config: Any, dataset: data.Dataset, train: Subset) -> Normalization:
    """Return the config's moments if it has any, else the data set's, else the training split's."""
    if config.data.mean:
        if len(config.data.mean) != dataset.channels:
            raise UserError(
                f"config.data.mean is {config.data.mean!r}, but the images have {dataset.channels} channels; give a "
                "number for each, or () for the data set's own"
            )
        return Normalization(config.data.mean, config.data.std)
    if not dataset.is_decoded and dataset.mean is None:
        print(
            f"reading all {len(train.labels):,} training images for their mean and deviation, at each start; "
            "config.data.mean and config.data.std save it"
        )
    return normalization_of(dataset, train)


def warn_if_nothing_moves(config: Any, spec: StepSpec, counts: Mapping[str, int], sizes: Mapping[str, int]) -> None:
    updates = spec.updates
    if not isinstance(updates, MovingSchedule) or updates.moves_anything(counts, sizes):
        return
    if updates.update_every < updates.end_step:
        reason = (
            f"each layer keeps all its weights, or so few that {updates.drop_fraction:g} of them is less than one; "
            "change config.pruning.density or config.sparse_training.drop_fraction"
        )
    else:
        reason = (
            f"the first move would be at step {updates.update_every}, and moves end before step {updates.end_step}; "
            "lower config.sparse_training.update_every"
        )
    method = config.sparse_training.method
    logger.warning("config.sparse_training.method is %r, but no weight will ever move: %s", method, reason)
