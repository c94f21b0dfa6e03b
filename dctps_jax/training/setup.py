"""What a config asks for, as objects: the numbers of a step, the optimiser, the network and its support."""

import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dctps_jax import data, models, pruning
from dctps_jax.data.batches import Examples, Normalization, normalization_of
from dctps_jax.data.dataset import Size
from dctps_jax.data.regularization import Regularization
from dctps_jax.errors import UserError
from dctps_jax.optimizers import SCHEDULES, make_optimizer, reduce_on_plateau
from dctps_jax.own import as_options, is_import_path
from dctps_jax.pruning.dynamic import update_schedule
from dctps_jax.seeds import stream
from dctps_jax.training import loop
from dctps_jax.training.own_network import build_own_network


def make_step_spec(config: Any, dataset: data.Dataset, train: Examples, platform: str) -> loop.StepSpec:
    """Return the fixed numbers of a run on ``platform``; a batch larger than the training split is a UserError."""
    steps_per_epoch = len(train.labels) // config.batch_size
    if steps_per_epoch == 0:
        raise UserError(
            f"config.batch_size is {config.batch_size}, but there are only {len(train.labels)} training images; choose "
            f"at most {len(train.labels)}"
        )
    return loop.StepSpec(
        batch_size=config.batch_size,
        eval_batch_size=config.eval_batch_size,
        steps_per_epoch=steps_per_epoch,
        steps_per_dispatch=config.steps_per_dispatch or loop.default_steps_per_dispatch(platform),
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
    )


def make_optimizer_and_schedule(
    config: Any, steps_per_epoch: int
) -> tuple[optax.GradientTransformation, Callable[[Any], Any]]:
    """Return the optimiser of ``config.optimizer``, and its learning rate as a function of the step."""
    options = config.optimizer
    schedule = SCHEDULES[options.schedule](options, steps_per_epoch, config.num_epochs)
    optimizer = make_optimizer(
        options.name,
        schedule,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        fixup=config.model.name.startswith("fixup") and not is_import_path(config.model.name),
        options=as_options(options.options),
        decay=options.decay,
        clip_norm=options.clip_norm,
        accumulate_steps=options.accumulate_steps,
        plateau=reduce_on_plateau(options, steps_per_epoch) if options.schedule == "plateau" else None,
    )
    return optimizer, schedule


def choose_normalization(config: Any, dataset: data.Dataset, train: Examples) -> Normalization:
    """Return the config's moments where it has any, else the data set's, else the training split's."""
    if config.data.mean:
        if len(config.data.mean) != dataset.channels:
            raise UserError(
                f"config.data.mean is {config.data.mean!r}, but the images have {dataset.channels} channels; give a "
                "number for each, or () for the data set's own"
            )
        return Normalization(config.data.mean, config.data.std)
    return normalization_of(dataset, train)


# Up to this density values, positions and two moments (16 bytes) of the kept weights take less than half of what
# kernel, mask and two moments (13 bytes) of all weights do.
MAX_COMPACT_DENSITY = 0.4

Shapes = Mapping[str, tuple[int, ...]]
Supports = dict[str, np.ndarray]


def build_model(
    config: Any, num_classes: int, image_size: Size, channels: int = 3, supports: Mapping[str, np.ndarray] | None = None
) -> nnx.Module:
    """Return the network that ``config.model`` describes, with initial weights from the run's seed.

    With ``supports``, as in :func:`dctps_jax.models.create_model`, it is compact.
    """
    if is_import_path(config.model.name):
        return build_own_network(config, num_classes, image_size, channels, supports)
    return models.create_model(
        config.model.name,
        num_classes=num_classes,
        image_size=image_size,
        channels=channels,
        offset=config.model.offset,
        alpha_trainable=config.model.alpha_trainable,
        init=config.model.init,
        dtype=None if config.model.dtype == "float32" else jnp.dtype(config.model.dtype),
        min_loop=config.execution.min_loop,
        remat=config.execution.remat,
        rngs=nnx.Rngs(stream(config.seed, "init")),
        supports=supports,
        **_network_options(config),
    )


def _network_options(config: Any) -> dict[str, Any]:
    """Return the fields of ``config.model`` that are options of its network only, e.g. the width of a ResNet."""
    return {name: config.model[name] for name in models.network_options(config.model.name) if name in config.model}


def _kernel_shapes(config: Any, num_classes: int, channels: int, build: Callable[[], nnx.Module]) -> Shapes:
    if is_import_path(config.model.name):
        return {path: layer.kernel_shape for path, layer in models.prunable_layers(build()).items()}
    name = config.model.name
    return models.kernel_shapes(name, num_classes=num_classes, channels=channels, **_network_options(config))


def build_sparse_model(
    config: Any,
    dataset: data.Dataset,
    train: Examples,
    spec: loop.StepSpec,
    own_supports: Mapping[str, np.ndarray] | None = None,
) -> tuple[nnx.Module, Supports]:
    """Return the network with the supports that ``config.pruning`` asks for, and the supports.

    A dense network has none. A run that goes on takes the supports of its checkpoint, ``own_supports``, and chooses
    none. In the compact form dense kernels are built only to compute scores, and, in a network without offset, one
    layer at a time to draw its initial weights.
    """
    build = partial(build_model, config, dataset.num_classes, dataset.image_size, dataset.channels)
    shapes = _kernel_shapes(config, dataset.num_classes, dataset.channels, build)
    settings = config.pruning
    if own_supports is not None:
        _check_supports(own_supports, shapes)
        supports = dict(own_supports)
    elif settings.method == "from_run":
        supports = _supports_of_run(config, shapes)
    elif settings.density == 1 and not settings.layer_densities:
        supports = {}
    elif settings.method in pruning.SCORES:
        supports = _supports_by_score(config, build(), train, spec)
    else:
        supports = _random_supports(config, shapes)
    if not supports:
        return build(), {}
    if _form(config, supports, shapes) == "compact":
        model = build(supports=supports)
    else:
        model = build()
        for path, layer in models.prunable_layers(model).items():
            layer.set_mask(pruning.mask_of_support(supports[path], layer.kernel_shape))
    layers = models.prunable_layers(model)
    for path, method in _methods(config, layers).items():
        layers[path].method = method
    return model, supports


def _form(config: Any, supports: Supports, shapes: Shapes) -> str:
    """Return the form of the trained weights, "compact" or "masked"; "auto" is the one that takes less memory."""
    if config.execution.form != "auto":
        return config.execution.form
    kept, size = sum(map(len, supports.values())), sum(math.prod(shape) for shape in shapes.values())
    return "compact" if kept <= MAX_COMPACT_DENSITY * size else "masked"


def _methods(config: Any, paths: Iterable[str]) -> dict[str, str]:
    """Return how each layer is to be computed; the first pattern that it matches counts."""
    methods: dict[str, str] = {}
    for pattern, method in config.execution.layer_methods:
        matching = [path for path in paths if fnmatch.fnmatch(path, pattern)]
        if not matching:
            raise UserError(
                f"config.execution.layer_methods: no layer matches {pattern!r}; the layers are: {', '.join(paths)}"
            )
        for path in matching:
            methods.setdefault(path, method)
    default: str = config.execution.method
    return {path: methods.get(path, default) for path in paths}


def _supports_of_run(config: Any, shapes: Shapes) -> Supports:
    """Return the supports of the run that ``config.pruning.run`` names, empty for a dense network."""
    folder = config.pruning.run
    masks = pruning.load_run_masks(folder)
    if not masks:
        if config.sparse_training.method != "static":
            raise UserError(f"config.pruning.run is {folder}, a dense network; it has no weights to move")
        return {}
    if not any(mask.any() for mask in masks.values()):
        raise UserError(f"config.pruning.run is {folder}, whose masks keep no weight; name another run")
    _check_masks(masks, shapes, folder)
    return {path: np.flatnonzero(mask) for path, mask in masks.items()}


def _check_supports(supports: Mapping[str, np.ndarray], shapes: Shapes) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` unless supports, if there are any, are of the network's layers."""
    foreign = sorted(set(supports) ^ set(shapes)) if supports else []
    foreign += [
        path
        for path, positions in supports.items()
        if path in shapes and positions.max(initial=0) >= math.prod(shapes[path])
    ]
    if foreign:
        raise UserError(
            f"the checkpoints of the run are of another network: {foreign[0]} is a layer of only one of them, or has "
            "another shape; go on with the version of dctps_jax that wrote them, or choose another directory"
        )


def _check_masks(masks: Mapping[str, np.ndarray], shapes: Shapes, source: str | Path) -> None:
    foreign = sorted(set(masks) ^ set(shapes))
    if foreign:
        raise UserError(
            f"the masks of {source} are not of this network's layers (the first that differs is {foreign[0]}); name a "
            "run of the same network"
        )
    for path, mask in masks.items():
        if mask.shape != tuple(shapes[path]):
            raise UserError(
                f"the mask of {path} in {source} has shape {mask.shape}, the kernel {tuple(shapes[path])}; name a "
                "run of the same network"
            )


def _random_supports(config: Any, shapes: Shapes) -> Supports:
    settings = config.pruning
    counts = pruning.allocate(
        shapes,
        settings.density,
        settings.method,
        dense_layers=settings.dense_layers,
        layer_densities=settings.layer_densities,
    )
    return pruning.random_supports(stream(config.seed, "masks"), shapes, counts)


def _supports_by_score(config: Any, model: nnx.Module, train: Examples, spec: loop.StepSpec) -> Supports:
    """Prune by a score on the batches that training will begin with.

    Step s of n batches sees those of training steps s·n to s·n + n − 1.
    """
    settings = config.pruning

    def batches(step: int) -> list[tuple[jax.Array, jax.Array]]:
        numbers = range(step * settings.num_batches, (step + 1) * settings.num_batches)
        return [loop.host_batch(number, train, spec) for number in numbers]

    masks = pruning.prune(
        model,
        settings.method,
        settings.density,
        key=stream(config.seed, "masks"),
        batch=batches,
        dense_layers=settings.dense_layers,
        layer_densities=settings.layer_densities,
        num_steps=settings.num_steps,
        schedule=settings.schedule,
        loss=settings.loss,
        scope=settings.scope,
        allocation=settings.allocation or None,
    )
    return {path: np.flatnonzero(mask) for path, mask in masks.items()}
