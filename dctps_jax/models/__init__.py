"""The networks of the paper. Each is written once: the argument ``offset`` is handed down to its layers."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dctps_jax.errors import UserError, did_you_mean
from dctps_jax.layers import prunable_layers
from dctps_jax.models.blocks import Running
from dctps_jax.models.fixup_resnet import BLOCKS_PER_STAGE, FixupResNet
from dctps_jax.models.lenet import LeNet
from dctps_jax.models.mobilenet import MobileNetV2
from dctps_jax.models.parts import INITIALIZERS, make_parts
from dctps_jax.models.resnet import BLOCKS, ResNet
from dctps_jax.models.vgg import STAGES, VGG
from dctps_jax.offsets import Offset

__all__ = ["INITIALIZERS", "MODELS", "RESNETS", "create_model", "prunable_layers"]

# The networks that take `width` and `stable`.
RESNETS = tuple(BLOCKS)

MODELS: dict[str, Any] = {
    "lenet": LeNet,
    **{name: partial(ResNet, block=block, num_blocks=num_blocks) for name, (block, num_blocks) in BLOCKS.items()},
    **{name: partial(VGG, stages=stages) for name, stages in STAGES.items()},
    "mobilenet_v2": MobileNetV2,
    **{name: partial(FixupResNet, blocks_per_stage=depth) for name, depth in BLOCKS_PER_STAGE.items()},
}


def create_model(
    name: str,
    *,
    num_classes: int,
    offset: str | Offset | None = None,
    image_size: int = 32,
    rngs: nnx.Rngs,
    alpha_trainable: bool = True,
    init: str = "kaiming_normal",
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    min_loop: int = 64,
    remat: bool = False,
    choose_support: Callable[[dict[str, tuple[int, ...]]], Mapping[str, np.ndarray]] | None = None,
    **options: Any,
) -> nnx.Module:
    """Build a network by name, with an offset in its prunable layers (``offset="dct"``) or without one (None).

    ``model(x)`` maps ``[batch, height, width, 3]`` to logits ``[batch, num_classes]``; ``model.train()`` and
    ``model.eval()`` switch BatchNorm. The weights do not depend on ``image_size``, which is only checked.

    - ``alpha_trainable``: False freezes every α at its initial value.
    - ``init``: how kernels start without an offset, one of :data:`INITIALIZERS`; Fixup networks have their own start.
    - ``dtype``: of the computation (None: as the inputs and parameters); ``param_dtype``: of the parameters.
    - ``min_loop``: so many equal blocks in a row or more are one loop, compiled once; 0: never.
    - ``remat``: True keeps the inputs of blocks only and computes what is inside again for the gradient: less memory.
    - ``choose_support``: a function of the prunable layers' kernel shapes that returns, by path, the ascending
      positions of their trained weights. The network is then compact: only these are stored, and no dense kernel is
      ever made, e.g. ``lambda shapes: random_supports(key, shapes, allocate(shapes, 0.001, "epl"))`` (of
      ``dctps_jax.pruning``).
    - ResNets also take ``width`` (channels of the first stage, 64) and ``stable`` (residual branches over √blocks).

    Raises :class:`~dctps_jax.errors.UserError` for a name, option or size that does not exist, listing what there is.
    """
    if name not in MODELS:
        hint = did_you_mean(name, MODELS)
        raise UserError(f"there is no network {name!r}{hint}; the networks are: {', '.join(MODELS)}")
    if init not in INITIALIZERS:
        raise UserError(f"there is no initialiser {init!r}; choose one of: {', '.join(INITIALIZERS)}")
    allowed = ("width", "stable") if name in RESNETS else ()
    for option in options:
        if option not in allowed:
            known = ", ".join(
                (
                    "alpha_trainable",
                    "init",
                    "dtype",
                    "param_dtype",
                    "precision",
                    "min_loop",
                    "remat",
                    "choose_support",
                    *allowed,
                )
            )
            raise UserError(f"{name} has no option {option!r}; its options are: {known}")
    if num_classes < 1:
        raise UserError(f"num_classes is {num_classes}; a network needs at least one class")
    if options.get("width", 1) < 1:
        raise UserError(f"width is {options['width']}; it must be at least 1")
    constructor = MODELS[name]
    smallest = getattr(constructor, "func", constructor).MIN_IMAGE_SIZE
    if image_size < smallest:
        raise UserError(f"image_size is {image_size}; {name} needs images of at least {smallest}×{smallest}")
    parts = make_parts(
        offset=offset,
        alpha_trainable=alpha_trainable,
        init=init,
        dtype=dtype,
        param_dtype=param_dtype,
        precision=precision,
        compact=choose_support is not None,
        running=Running(min_loop, remat),
        rngs=rngs,
    )
    model: Any = constructor(parts, num_classes=num_classes, **options)
    layers = prunable_layers(model)
    model.layer_order = tuple(layers)
    if choose_support is not None:
        supports = choose_support({path: layer.kernel_shape for path, layer in layers.items()})
        if set(supports) != set(layers):
            raise UserError(f"choose_support names {len(supports)} layers; it must name these: {', '.join(layers)}")
        for path, positions in supports.items():
            layers[path].set_support(positions)
    return model
