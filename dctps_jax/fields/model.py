"""The fields of the network."""

import math

from dctps_jax import models
from dctps_jax.field import Allowed, Field, Need, at_least
from dctps_jax.fields.values import are_pairs, are_texts
from dctps_jax.models.resnet import STEMS
from dctps_jax.offsets import OFFSETS
from dctps_jax.user_functions import IMPORT_PATH, is_option

DTYPES = ("float32", "bfloat16", "float16")

OFFSET_IN_USE = Need("model.offset", lambda name: name is not None)
NO_OFFSET = Need("model.offset", lambda name: name is None)

MODEL: dict[str, Field] = {
    "model.name": Field(
        "lenet",
        "The network. A function of yours gets each of `num_classes`, `image_size`, `channels`, `offset` and `rngs` "
        "that its signature names, and returns an `nnx.Module`.",
        choices=models.MODELS,
        allowed=IMPORT_PATH,
    ),
    "model.options": Field(
        (),
        "More arguments for a network of yours.",
        allowed=Allowed(
            lambda pairs: are_pairs(pairs, is_option), "(name, value) pairs, e.g. (('depth', 4), ('widths', (8, 16)))"
        ),
        added=True,
    ),
    "model.exclude": Field(
        (),
        "Path patterns of the layers that stay as they are in a network of yours: no offset, all weights.",
        allowed=Allowed(are_texts, "path patterns, e.g. ('head',)"),
        added=True,
    ),
    "model.offset": Field(
        "dct",
        "The fixed matrix D in the kernels K = α·D + M⊙S; None: kernels are K = M⊙S.",
        choices=OFFSETS,
        optional=True,
    ),
    "model.alpha_trainable": Field(
        True, "Train the α of each layer; False: it stays at its initial value.", needs=(OFFSET_IN_USE,)
    ),
    "model.alpha_init": Field(
        1.0,
        "The α that each layer starts with. Fixup networks have their own start.",
        allowed=Allowed(math.isfinite, "finite"),
        needs=(OFFSET_IN_USE,),
        added=True,
    ),
    "model.init": Field(
        "kaiming_normal",
        "How kernels without offset start. With an offset S starts at zero. Fixup networks have their own start.",
        choices=models.INITIALIZERS,
        needs=(NO_OFFSET,),
    ),
    "model.width": Field(64, "Channels of the first stage of a ResNet.", allowed=at_least(1)),
    "model.stem": Field(
        "cifar",
        "How a ResNet begins. `cifar`: with a 3×3 convolution. `imagenet`, for large images: with a 7×7 convolution "
        "and maxima of 3×3, both with stride 2 (He et al. 2016).",
        choices=STEMS,
        added=True,
    ),
    "model.stable": Field(
        False,
        "Divide the residual branches of a ResNet by √(number of blocks).",
    ),
    "model.dtype": Field(
        "auto",
        "Type of the computation. `auto` is bfloat16 on a TPU and on an NVIDIA GPU of compute capability 8.0 or more, "
        "float32 elsewhere; a run keeps the type that it began with. Parameters, statistics, losses and the "
        "optimiser's state are always float32.",
        choices=("auto", *DTYPES),
    ),
}
