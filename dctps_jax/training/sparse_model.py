"""The network that a config asks for, with the supports that pruning chooses."""

import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dctps_jax import data, models, pruning
from dctps_jax.data.batches import Subset, epoch_permutation, make_batch
from dctps_jax.data.dataset import Size
from dctps_jax.errors import UserError
from dctps_jax.fields.model import DTYPES
from dctps_jax.runs.source_run import prune_trained_weights, rewinds, source_folder
from dctps_jax.seeds import stream
from dctps_jax.training.mask_updates import WeightCounts
from dctps_jax.training.own_network import build_own_network
from dctps_jax.training.step_spec import StepSpec
from dctps_jax.user_functions import is_import_path

# Up to this density, the values, positions and two moments (16 bytes) of the kept weights take less than half of the
# memory of kernel, mask and two moments (13 bytes) of all weights.
MAX_COMPACT_DENSITY = 0.4

Shapes = Mapping[str, tuple[int, ...]]
Supports = dict[str, np.ndarray]


def build_model(
    config: Any, num_classes: int, image_size: Size, channels: int = 3, supports: Mapping[str, np.ndarray] | None = None
) -> nnx.Module:
    """Return the network that ``config.model`` describes, with initial weights from the run's seed.

    With ``supports``, as in :func:`dctps_jax.models.create_model`, the network is compact.
    """
    if is_import_path(config.model.name):
        return build_own_network(config, num_classes, image_size, channels, supports)
    return models.create_model(
        config.model.name,
        num_classes=num_classes,
        image_size=image_size,
        channels=channels,
        offset=config.model.offset,
        alpha_init=config.model.alpha_init,
        alpha_trainable=config.model.alpha_trainable,
        init=config.model.init,
        dtype=_dtype_of(config),
        min_loop=config.execution.min_loop,
        remat=config.execution.remat,
        rngs=nnx.Rngs(stream(config.seed, "init")),
        supports=supports,
        **_network_options(config),
    )


def _dtype_of(config: Any) -> Any:
    """Return the type in which the network computes; None: the type of its float32 parameters."""
    if config.model.dtype == "auto":
        raise UserError(
            "config.model.dtype is 'auto', which a run resolves by its devices; to build a network, give it one of: "
            f"{', '.join(DTYPES)}"
        )
    return None if config.model.dtype == "float32" else jnp.dtype(config.model.dtype)


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
    train: Subset,
    spec: StepSpec,
    saved_supports: Mapping[str, np.ndarray] | None = None,
) -> tuple[nnx.Module, Supports]:
    """Return the network with the supports that ``config.pruning`` asks for, and the supports.

    A dense network has no supports. A resumed run does not choose supports again: it takes ``saved_supports``, from its
    checkpoint. In the compact form dense kernels are built only to compute scores, and, in a network without offset,
    one layer at a time to draw its initial weights.
    """
    build = partial(build_model, config, dataset.num_classes, dataset.image_size, dataset.channels)
    shapes = _kernel_shapes(config, dataset.num_classes, dataset.channels, build)
    settings = config.pruning
    if saved_supports is not None:
        _check_supports(saved_supports, shapes)
        supports = dict(saved_supports)
    elif settings.method == "from_run":
        supports = _supports_of_run(config, shapes)
    elif pruning.trains_all_weights(settings.method, settings.density, settings.layer_densities):
        supports = {}
    elif chooses_by_score(config):
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


def chooses_by_score(config: Any) -> bool:
    """Return whether a new run of ``config`` chooses its trained weights by scores."""
    settings = config.pruning
    is_dense = pruning.trains_all_weights(settings.method, settings.density, settings.layer_densities)
    return settings.method in pruning.SCORES and not is_dense


def _form(config: Any, supports: Supports, shapes: Shapes) -> str:
    """Return the form of the trained weights, "compact" or "masked"; "auto" depends on the density."""
    if config.execution.form != "auto":
        return config.execution.form
    if is_pruned_while_training(config):
        return "masked"
    kept, size = sum(map(len, supports.values())), sum(math.prod(shape) for shape in shapes.values())
    return "compact" if kept <= MAX_COMPACT_DENSITY * size else "masked"


def _methods(config: Any, paths: Iterable[str]) -> dict[str, str]:
    """Return how each layer is to be computed; for each layer the first matching pattern counts."""
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
    """Return the supports of the run that ``config.pruning.run`` names; empty for a dense network."""
    if rewinds(config):
        return prune_trained_weights(config, shapes)
    folder = source_folder(config)
    masks = pruning.load_run_masks(folder)
    if not masks:
        if config.sparse_training.method != "static":
            raise UserError(f"config.pruning.run is {folder}, a dense network; it has no weights to move")
        return {}
    if not any(mask.any() for mask in masks.values()):
        raise UserError(f"config.pruning.run is {folder}, whose masks keep no weight; name another run")
    pruning.check_masks(masks, shapes, folder)
    return {path: np.flatnonzero(mask) for path, mask in masks.items()}


def _check_supports(supports: Mapping[str, np.ndarray], shapes: Shapes) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` unless supports, if any, belong to the network's layers."""
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


def _random_supports(config: Any, shapes: Shapes) -> Supports:
    settings, key = config.pruning, stream(config.seed, "masks")
    if settings.pattern:
        return pruning.random_pattern_supports(
            key, shapes, settings.pattern, settings.density, **_fixed_layers(settings)
        )
    return pruning.random_supports(key, shapes, _first_counts(config, shapes))


def _fixed_layers(settings: Any) -> dict[str, Any]:
    return {"dense_layers": settings.dense_layers, "layer_densities": settings.layer_densities}


def _last_counts(config: Any, shapes: Shapes) -> dict[str, int]:
    settings = config.pruning
    return pruning.allocate(shapes, settings.density, settings.method, **_fixed_layers(settings))


def _first_counts(config: Any, shapes: Shapes) -> dict[str, int]:
    """Return how many weights each layer trains at first, if their positions are random."""
    last = _last_counts(config, shapes)
    if not is_pruned_while_training(config):
        return last
    # A layer with a density of its own may need more weights than the allocation of the initial density gives it.
    first = pruning.allocate(shapes, config.sparse_training.initial_density, config.pruning.method)
    return {path: max(count, last[path]) for path, count in first.items()}


def is_pruned_while_training(config: Any) -> bool:
    """Return whether a run starts with more weights than it ends with."""
    return config.sparse_training.method == "gmp"


def weight_counts(config: Any, spec: StepSpec, shapes: Shapes, supports: Supports) -> WeightCounts:
    """Return how many weights each layer trains at first and at last; a layer without support trains all of them."""
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    if is_pruned_while_training(config):
        return WeightCounts(spec.updates, _first_counts(config, shapes), _last_counts(config, shapes), sizes)
    counts = {path: len(supports[path]) if path in supports else size for path, size in sizes.items()}
    return WeightCounts(spec.updates, counts, counts, sizes)


def _supports_by_score(config: Any, model: nnx.Module, train: Subset, spec: StepSpec) -> Supports:
    """Prune by a score on the batches with which training will begin, before mixup and label smoothing.

    Step s of n batches uses the batches of training steps s·n to s·n + n − 1.
    """
    settings = config.pruning

    def batches(step: int) -> list[tuple[jax.Array, jax.Array]]:
        numbers = range(step * settings.num_batches, (step + 1) * settings.num_batches)
        return [host_batch(number, train, spec) for number in numbers]

    masks = pruning.prune(
        model,
        settings.method,
        settings.density,
        key=stream(config.seed, "masks"),
        batch=batches,
        **_fixed_layers(settings),
        num_steps=settings.num_steps,
        schedule=settings.schedule,
        loss=settings.loss,
        scope=settings.scope,
        allocation=settings.allocation or None,
        pattern=settings.pattern,
    )
    return {path: np.flatnonzero(mask) for path, mask in masks.items()}


def host_batch(number: int, train: Subset, spec: StepSpec) -> tuple[jax.Array, jax.Array]:
    """Return the batch of training step ``number``, from training images that are not on the devices yet."""
    epoch, position = divmod(number, spec.steps_per_epoch)
    key = jax.random.key(spec.seed)
    order = epoch_permutation(epoch, key=key, count=len(train.labels))
    picked = train.at(np.asarray(order)[position * spec.batch_size :][: spec.batch_size], epoch)
    return make_batch(
        picked,
        jnp.asarray(number),
        normalization=spec.normalization,
        augmented=spec.augmented,
        only_flips=spec.only_flips,
        key=key,
        regularization=spec.regularization,
    )
