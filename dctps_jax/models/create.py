"""The table of networks, and how one is created by its name."""

import inspect
import math
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dctps_jax.arguments import as_tuple, check_choice, check_flag, check_size, check_sizes, is_whole, words
from dctps_jax.data.dataset import Size
from dctps_jax.errors import UserError, did_you_mean
from dctps_jax.kernels import KernelLayer
from dctps_jax.models.blocks import Running
from dctps_jax.models.fixup_resnet import BLOCKS_PER_STAGE, FixupResNet
from dctps_jax.models.initializers import INITIALIZERS
from dctps_jax.models.lenet import LeNet
from dctps_jax.models.mobilenet import STAGES as MOBILENET_STAGES
from dctps_jax.models.mobilenet import MobileNetV2
from dctps_jax.models.parts import Parts, make_parts
from dctps_jax.models.resnet import BLOCKS, STEMS, ResNet
from dctps_jax.models.vgg import STAGES, VGG
from dctps_jax.offsets import Offset
from dctps_jax.prunable import ORDER, prunable_layers

# The networks that take ``width``, ``stable`` and ``stem``.
RESNETS = tuple(BLOCKS)

MODELS: dict[str, Any] = {
    "lenet": LeNet,
    **{name: partial(ResNet, block=block, num_blocks=num_blocks) for name, (block, num_blocks) in BLOCKS.items()},
    **{name: partial(VGG, stages=stages) for name, stages in STAGES.items()},
    "mobilenet_v2": partial(MobileNetV2, stages=MOBILENET_STAGES),
    **{name: partial(FixupResNet, blocks_per_stage=depth) for name, depth in BLOCKS_PER_STAGE.items()},
}


def is_fixup(name: str) -> bool:
    """Return whether a name is the name of a Fixup network of the package, with its own start and learning rates."""
    return name in MODELS and name.startswith("fixup")


def create_model(
    name: str,
    *,
    num_classes: int,
    offset: str | Offset | None = None,
    image_size: Size = 32,
    rngs: nnx.Rngs,
    alpha_init: float = 1.0,
    alpha_trainable: bool = True,
    init: str = "kaiming_normal",
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    min_loop: int = 64,
    remat: bool = False,
    channels: int = 3,
    supports: Mapping[str, np.ndarray] | None = None,
    **options: Any,
) -> nnx.Module:
    """Build a network by name, with an offset in its prunable layers (``offset="dct"``) or without one (None).

    ``model(x)`` maps ``[batch, height, width, channels]`` to logits ``[batch, num_classes]``. ``model.train()`` and
    ``model.eval()`` switch BatchNorm. ``image_size``, one number or (height, width), is only checked: the weights do
    not depend on it.

    - ``alpha_init``: the initial α of each layer; Fixup networks have their own start.
    - ``alpha_trainable``: False freezes every α at its initial value.
    - ``init``: how kernels start without an offset, one of :data:`INITIALIZERS`; Fixup networks have their own start.
    - ``dtype``: the type of the computation (None: as the inputs and parameters); ``param_dtype``: of the parameters.
    - ``min_loop``: at least this many equal blocks in a row become one loop, compiled once; 0: never.
    - ``remat``: True keeps only the inputs of blocks and computes the rest again for the gradient: less memory.
    - ``channels``: channels of the images, 3 for RGB and 1 for grey ones.
    - ``supports``: the ascending positions of the trained weights in the flattened kernel of each prunable layer, by
      path. The network is then compact: it stores only these weights. An example is ``random_supports(key, shapes,
      allocate(shapes, 0.001, "epl"))`` (of ``dctps_jax.pruning``) with the shapes of :func:`kernel_shapes`. No dense
      kernel is made, except that without offset the initial weights are read from one layer's initial kernel at a time.
    - ResNets also take ``width`` (channels of the first stage, 64), ``stable`` (residual branches over √blocks) and
      ``stem`` ("imagenet": 7×7 with stride 2 and maxima of 3×3 with stride 2; "cifar": 3×3).

    Raises :class:`~dctps_jax.errors.UserError`, which lists what there is, for an unknown name, option or size.
    """
    constructor = _find_network(name, num_classes, options)
    check_choice("init", init, tuple(INITIALIZERS))
    check_flag("remat", remat)
    if not is_whole(min_loop) or min_loop < 0:
        raise UserError(f"min_loop is {words(min_loop)}; it must be a whole number of at least 1, or 0 for never")
    check_sizes(image_size=image_size)
    sizes = as_tuple(image_size)
    if len(sizes) not in (1, 2):
        raise UserError(f"image_size is {image_size}; it must be one number, or (height, width)")
    smallest = getattr(constructor, "func", constructor).MIN_IMAGE_SIZE
    if min(sizes) < smallest:
        raise UserError(f"image_size is {image_size}; {name} needs images of at least {smallest}×{smallest}")
    in_order = None
    if supports is not None:
        shapes = kernel_shapes(name, num_classes=num_classes, channels=channels, **options)
        _check_supports(supports, shapes)
        in_order = [supports[path] for path in shapes]
    parts = make_parts(
        offset=offset,
        alpha_init=alpha_init,
        alpha_trainable=alpha_trainable,
        init=init,
        dtype=dtype,
        param_dtype=param_dtype,
        precision=precision,
        supports=in_order,
        running=Running(min_loop, remat),
        channels=channels,
        rngs=rngs,
    )
    model: Any = constructor(parts, num_classes=num_classes, **options)
    setattr(model, ORDER, tuple(_layers_as_built(model, parts)))
    return model


def _check_supports(supports: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` for supports of other layers or of larger kernels."""
    if set(supports) != set(shapes):
        raise UserError(f"supports names {len(supports)} layers; it must name these: {', '.join(shapes)}")
    for path, positions in supports.items():
        if np.size(positions) and np.max(positions) >= math.prod(shapes[path]):
            raise UserError(
                f"supports has position {np.max(positions)} for {path}, whose kernel has shape {shapes[path]}; choose "
                "the supports for the shapes that kernel_shapes returns for the same network, with the same options"
            )


def kernel_shapes(name: str, *, num_classes: int, channels: int = 3, **options: Any) -> dict[str, tuple[int, ...]]:
    """Return the kernel shapes of a network's prunable layers by dotted path. No array is made.

    ``options`` are options of the network itself, e.g. ``width``. It raises the errors of :func:`create_model`.
    """
    constructor = _find_network(name, num_classes, options)
    return dict(_abstract_shapes(constructor, num_classes, channels, tuple(options.items())))


@cache
def _abstract_shapes(
    constructor: Any, num_classes: int, channels: int, options: tuple[tuple[str, Any], ...]
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}

    def build() -> None:
        same_key: Any = _SameKey()
        parts = make_parts(running=Running(), rngs=same_key, channels=channels)
        model = constructor(parts, num_classes=num_classes, **dict(options))
        shapes.update({path: layer.kernel_shape for path, layer in _layers_as_built(model, parts).items()})

    jax.eval_shape(build)
    return shapes


class _SameKey:
    """Stands in for ``nnx.Rngs`` if no number is drawn: tracing its counter would take quadratic time."""

    def params(self) -> jax.Array:
        return jax.random.key(0)


def _layers_as_built(model: nnx.Module, parts: Parts) -> dict[str, KernelLayer]:
    """Return the prunable layers of a network by path.

    Supports are given to the layers in the order in which the network builds them. This must be the order of its
    attributes.
    """
    layers = prunable_layers(model)
    if [id(layer) for layer in layers.values()] != [id(layer) for layer in parts.built]:
        raise TypeError(
            f"{type(model).__name__} must build its layers in the order in which it keeps them as attributes"
        )
    return layers


def _find_network(name: str, num_classes: int, options: Mapping[str, Any]) -> Any:
    """Return the constructor of a network; raise ``UserError`` for an unknown name, option or number."""
    if name not in MODELS:
        hint = did_you_mean(name, MODELS)
        raise UserError(f"there is no network {name!r}{hint}; the networks are: {', '.join(MODELS)}")
    own_options = network_options(name)
    for option in options:
        if option not in own_options:
            parameters = inspect.signature(create_model).parameters.values()
            shared = [parameter.name for parameter in parameters if parameter.default is not parameter.empty]
            of_all = f"; create_model has these for all networks: {', '.join(shared)}"
            raise UserError(
                f"{name} has no option {option!r}; its options are: {', '.join(own_options) or 'none'}{of_all}"
            )
    check_size(num_classes=num_classes, width=options.get("width", 1))
    check_choice("stem", options.get("stem", "cifar"), STEMS)
    check_flag("stable", options.get("stable", False))
    return MODELS[name]


def network_options(name: str) -> tuple[str, ...]:
    """Return the names of the options that only the network ``name`` has, not all networks."""
    constructor = MODELS[name]
    fixed = getattr(constructor, "keywords", {})
    arguments = inspect.signature(getattr(constructor, "func", constructor).__init__).parameters
    return tuple(argument for argument in arguments if argument not in ("self", "parts", "num_classes", *fixed))
