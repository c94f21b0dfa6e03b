"""What a config asks for, as objects: the plan of the loop, the network, its masks, its optimiser."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dctps_jax import data, models, pruning
from dctps_jax.data.batches import Normalization, Split, normalization_of
from dctps_jax.errors import UserError
from dctps_jax.pruning.dynamic import UpdateSchedule
from dctps_jax.seeds import stream
from dctps_jax.training import loop


def make_plan(config: Any, dataset: data.Dataset, train: Split) -> loop.Plan:
    """Return the fixed numbers of the run; a batch larger than the training split is a UserError."""
    steps_per_epoch = len(train.labels) // config.batch_size
    if steps_per_epoch == 0:
        raise UserError(
            f"config.batch_size is {config.batch_size}, but there are only {len(train.labels)} training images; choose at "
            f"most {len(train.labels)}"
        )
    updates = None
    if config.sparse_training.method != "static":
        updates = UpdateSchedule(
            config.sparse_training.update_every,
            int(config.sparse_training.stop_fraction * config.num_epochs * steps_per_epoch),
            config.sparse_training.drop_fraction,
        )
    return loop.Plan(
        batch_size=config.batch_size,
        eval_batch_size=config.eval_batch_size,
        steps_per_epoch=steps_per_epoch,
        steps_per_dispatch=config.steps_per_dispatch or loop.default_steps_per_dispatch(),
        normalization=choose_normalization(config, dataset, train),
        augmented=config.data.augment,
        seed=config.seed,
        sparse_training=config.sparse_training.method,
        updates=updates,
    )


def choose_normalization(config: Any, dataset: data.Dataset, train: Split) -> Normalization:
    """Return the config's moments where it has any, else the data set's, else the training split's."""
    if config.data.mean:
        return Normalization(config.data.mean, config.data.std)
    return normalization_of(dataset, train)


def build_model(config: Any, num_classes: int, image_size: int) -> nnx.Module:
    """Return the network that ``config.model`` describes, with initial weights from the run's seed."""
    is_resnet = config.model.name in models.RESNETS
    return models.create_model(
        config.model.name,
        num_classes=num_classes,
        image_size=image_size,
        offset=config.model.offset,
        alpha_trainable=config.model.alpha_trainable,
        init=config.model.init,
        dtype=None if config.model.dtype == "float32" else jnp.dtype(config.model.dtype),
        rngs=nnx.Rngs(stream(config.seed, "init")),
        **({"width": config.model.width, "stable": config.model.stable} if is_resnet else {}),
    )


def choose_masks(config: Any, model: nnx.Module, train: Split, plan: loop.Plan) -> dict[str, np.ndarray]:
    """Return the masks that ``config.pruning`` asks for and apply them; none at all for the dense network.

    Scores see the batches that training will begin with: step s of n batches those of training steps s·n to s·n + n − 1.
    """
    settings = config.pruning
    if settings.method == "from_run":
        masks = pruning.load_masks(Path(settings.run) / "masks.npz")
        layers = models.prunable_layers(model)
        if masks and set(masks) != set(layers):
            raise UserError(
                f"config.pruning.run is {settings.run}, whose masks are of {len(masks)} layers; {config.model.name} has "
                f"{len(layers)}, name a run of the same network"
            )
        if not masks and config.sparse_training.method != "static":
            raise UserError(f"config.pruning.run is {settings.run}, a dense network; it has no weights to move")
        pruning.apply_masks(model, masks)
        return masks
    if settings.density == 1 and not settings.layer_densities:
        return {}

    def batches(step: int) -> list[tuple[jax.Array, jax.Array]]:
        numbers = range(step * settings.num_batches, (step + 1) * settings.num_batches)
        return [loop.host_batch(number, train, plan) for number in numbers]

    options = {}
    if settings.method in pruning.SCORE_METHODS:
        names = ("num_steps", "schedule", "loss", "scope")
        options = {name: settings[name] for name in names} | {"allocation": settings.allocation or None}
    masks = pruning.prune(
        model, settings.method, settings.density, key=stream(config.seed, "masks"), batch=batches,
        dense_layers=settings.dense_layers, layer_densities=settings.layer_densities, **options,
    )  # fmt: skip
    pruning.apply_masks(model, masks)
    return masks
