"""The fields of a config, each declared once, and the config of the paper's protocol, on which every config builds.

The protocol: 200 epochs of Adam (0.001) or SGD (0.1, momentum 0.9) at batch 128, L2 of 5e-4 added to the gradient of
every trainable parameter, 90 % of the training images to train and 10 % to validate, random crops and flips. SGD with
its schedule is

    --config.optimizer.name=sgd --config.optimizer.learning_rate=0.1 "--config.optimizer.milestones=(120, 160)"

:mod:`dctps_jax.config` checks a config by these declarations, and ``docs/configuration.md`` is made from them.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

from ml_collections import ConfigDict, config_dict

from dctps_jax import data, models, pruning
from dctps_jax.data.dataset import MAX_PIXELS
from dctps_jax.data.images import FITS
from dctps_jax.field import Allowed, ByStep, Field, Need, at_least
from dctps_jax.losses import LOSSES
from dctps_jax.models.resnet import STEMS
from dctps_jax.offsets import OFFSETS
from dctps_jax.ops import cost_model
from dctps_jax.optimizers import DECAYS, OPTIMIZERS, SCHEDULES, rates_by_step
from dctps_jax.own import IMPORT_PATH, is_option
from dctps_jax.pruning import by_score, dynamic, schedules

DTYPES = ("float32", "bfloat16", "float16")


def are_epochs(values: Iterable[Any]) -> bool:
    """Return whether values are whole epochs from 1 in increasing order."""
    epochs = list(values)
    return all(type(epoch) is int and epoch >= 1 for epoch in epochs) and sorted(set(epochs)) == epochs


def are_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def are_pairs(values: Iterable[Any], is_allowed: Callable[[Any], bool]) -> bool:
    """Return whether values are pairs of a path pattern and something allowed."""
    return all(
        isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str) and is_allowed(pair[1])
        for pair in values
    )


def is_coordinator(value: str) -> bool:
    host, colon, port = value.rpartition(":")
    return value in ("", "auto") or bool(host and colon and port.isdecimal() and 0 < int(port) < 1 << 16)


def is_density(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value <= 1


# What some fields need to have an effect.
OFFSET_IN_USE = Need("model.offset", lambda name: name is not None)
OWN_DENSITY = Need("pruning.method", lambda name: name != "from_run")
MASKS_OF_RUN = Need("pruning.method", lambda name: name == "from_run")
REWINDS = Need("pruning.rewind_epoch", lambda epoch: epoch >= 0)
SCORE_IN_USE = Need("pruning.method", lambda name: name not in (*pruning.ALLOCATIONS, "from_run"))
SUPPORT_CHANGES = Need("sparse_training.method", lambda name: name != "static")
WEIGHTS_MOVE = Need("sparse_training.method", lambda name: name in ("rigl", "set"))
GRADUAL_PRUNING = Need("sparse_training.method", lambda name: name == "gmp")

FROM_0_TO_1 = Allowed(lambda value: 0 <= value <= 1, "from 0 to 1")

FINITE = Allowed(lambda value: 0 <= value < math.inf, "at least 0 and finite")
BELOW_1 = Allowed(lambda value: 0 <= value < 1, "at least 0 and below 1")

# Dotted name → declaration.
FIELDS: dict[str, Field] = {
    "seed": Field(
        0,
        "All random numbers of the run come from it.",
        allowed=Allowed(lambda value: 0 <= value < 2**32, "a whole number from 0 to 2^32 - 1"),
    ),
    "num_seeds": Field(
        1,
        "Above 1: runs with `seed`, `seed + 1`, … in a directory each, and their mean and deviation.",
        allowed=at_least(1),
        grows=True,
    ),
    "batch_size": Field(128, "Images in a training step, over all devices.", allowed=at_least(1)),
    "eval_batch_size": Field(256, "Images in an evaluation step, over all devices.", allowed=at_least(1)),
    "num_epochs": Field(200, "Passes over the training images.", allowed=at_least(1), grows=True),
    "steps_per_dispatch": Field(
        0,
        "Training steps in one call to the device; 0: 1 on a CPU, 50 elsewhere, or as many as 256 MB of images are for "
        "where they are streamed.",
        allowed=at_least(1, zero="to choose by platform"),
    ),
    "log_every_steps": Field(
        50,
        "The loss is checked, and printed where there is no terminal, after so many steps, rounded up to whole "
        "dispatches, and at the end of each epoch.",
        allowed=at_least(1),
        resume=True,
    ),
    "checkpoint_every_steps": Field(
        0,
        "A checkpoint is written after so many steps, and at the end of each epoch.",
        allowed=at_least(1, zero="for the end of each epoch only"),
    ),
    "keep_epochs": Field(
        (),
        "Checkpoints of these epochs are kept, for `pruning.rewind_epoch` of other runs.",
        allowed=Allowed(are_epochs, "whole epochs of at least 1 in increasing order, e.g. (2,)"),
        added=True,
        resume=True,
    ),
    "tensorboard": Field(True, "Write the metrics for TensorBoard, too, if tensorboardX is installed.", resume=True),
    "wandb": Field(
        "off",
        "Write the metrics for Weights & Biases, too: kept in the run's directory, or sent.",
        choices=("off", "offline", "online"),
        added=True,
        resume=True,
    ),
    "trackio": Field(
        False, "Write the metrics for Trackio, too: kept in the run's directory.", added=True, resume=True
    ),
    # Several processes, see docs/several_hosts.md.
    "distributed.coordinator": Field(
        "",
        "With several processes: the `host:port` at which process 0 listens, or `auto` to have JAX find the processes "
        "of a TPU pod, Slurm, Open MPI or Kubernetes. All need the same `--workdir`.",
        allowed=Allowed(is_coordinator, "host:port with a port up to 65535, 'auto', or '' for one process"),
        added=True,
        resume=True,
    ),
    "distributed.num_processes": Field(
        0,
        "How many processes there are, with a `host:port`.",
        allowed=at_least(1, zero="where they are detected"),
        added=True,
        resume=True,
    ),
    "distributed.process_id": Field(
        -1,
        "Which of them this process is, from 0 on.",
        allowed=at_least(-1),
        added=True,
        resume=True,
    ),
    "distributed.shards": Field(
        1,
        "Into how many parts large arrays of the weights and of the optimiser are divided among the devices, for "
        "networks that one device cannot hold. The number of devices has to be a multiple of it.",
        allowed=at_least(1),
        added=True,
        resume=True,
    ),
    # The network.
    "model.name": Field(
        "lenet",
        "The network. A function of yours gets those of `num_classes`, `image_size`, `channels`, `offset` and `rngs` "
        "that it takes, and returns an `nnx.Module`.",
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
        "Path patterns of layers of a network of yours that stay as they are: no offset, all weights.",
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
    "model.init": Field(
        "kaiming_normal",
        "Initial kernels without offset. With an offset S starts at zero. Fixup networks have their own start.",
        choices=models.INITIALIZERS,
    ),
    "model.width": Field(64, "Channels of the first stage of a ResNet.", allowed=at_least(1)),
    "model.stem": Field(
        "cifar",
        "How a ResNet begins: with a 3×3 convolution, or, for large images, with one of 7×7 and maxima of 3×3, both "
        "with stride 2 (He et al. 2016).",
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
    # The images.
    "data.name": Field(
        "cifar10",
        "The data set. A function of yours gets those of `dir`, `image_size` and `seed` that it takes.",
        choices=data.SOURCES,
        allowed=data.OWN,
    ),
    "data.dir": Field(
        "",
        'Folder of the files; "": `~/.cache/dctps_jax/data`, or below `$XDG_CACHE_HOME`. A run on an `image_folder` '
        "must keep it.",
        resume=True,
    ),
    "data.channels": Field(
        3,
        "Channels of the images of an `image_folder` and the other folders: 3, or 1 for grey ones.",
        allowed=Allowed(lambda value: value in (1, 3), "3 or 1"),
        added=True,
    ),
    "data.cache_dir": Field(
        "", 'Folder for decoded copies of the images; "": `~/.cache/dctps_jax/decoded`.', resume=True
    ),
    "data.image_size": Field(
        0,
        "Resize images that are decoded from files, and those of `synthetic`, to so many pixels.",
        allowed=at_least(1, zero="for the size the images have"),
    ),
    "data.fit": Field(
        "squash",
        "How images that are not square are brought to `data.image_size`: `crop` takes the middle, `pad` "
        "adds white margins, `squash` changes their shape, `centre` takes 7/8 of the middle.",
        choices=FITS,
        added=True,
    ),
    "data.max_pixels": Field(
        MAX_PIXELS,
        "An image file with more pixels is refused before it is decoded.",
        allowed=Allowed(lambda value: 1 <= value <= 2**27, "at least 1 and at most 2^27"),
        resume=True,
    ),
    "data.download": Field(True, "Download an official archive that is missing.", resume=True),
    "data.streaming": Field(
        "auto",
        "Read the images while they are used (`on`), or keep all of them on each device (`off`); `auto`: read them "
        "where they would take more than a quarter of a device's memory.",
        choices=("auto", "on", "off"),
        added=True,
        resume=True,
    ),
    "data.processes": Field(
        0,
        "So many processes decode the files of images that are streamed.",
        allowed=at_least(1, zero="for threads of the program itself"),
        added=True,
        resume=True,
    ),
    "data.mean": Field((), "Mean of each channel, of pixels in [0, 1]; (): the data set's own."),
    "data.std": Field((), "Standard deviation of each channel; (): the data set's own."),
    "data.augment": Field(True, "Train on random crops and flips."),
    "data.crop": Field(
        "padded",
        "The random crops: of the image with a margin of 4 black pixels, or of the image files, which are streamed: of "
        "8 to 100 % of their area, brought to `data.image_size` (Szegedy et al. 2015).",
        choices=("padded", "random_resized"),
        added=True,
    ),
    "data.cutout": Field(
        0,
        "Blank a square of so many pixels in each training image (DeVries & Taylor 2017).",
        allowed=at_least(1, zero="for none"),
        added=True,
    ),
    "data.random_erasing": Field(
        0.0,
        "Blank a random rectangle in this part of the training images (Zhong et al. 2020).",
        allowed=FROM_0_TO_1,
        added=True,
    ),
    "data.mixup": Field(
        0.0,
        "Mix the images of a batch in pairs, with weights from Beta(mixup, mixup) (Zhang et al. 2018).",
        allowed=FINITE,
        added=True,
    ),
    "data.train_fraction": Field(
        0.9,
        "The part of the training images that trains; the others validate.",
        allowed=Allowed(lambda value: 0 < value < 1, "above 0 and below 1, e.g. 0.9"),
    ),
    # Which weights are trained.
    "pruning.method": Field(
        "epl",
        "How the trained weights are chosen. At random positions: equally many in each layer (`epl`) or filter "
        "(`epf`), by the Erdős–Rényi kernel (`erk`), or with one density (`uniform`). `from_run`: the masks of the run "
        "in `pruning.run`, whatever the density, or fewer of its weights (`rewind_epoch`). The others are scores.",
        choices=(*pruning.METHODS, "from_run"),
    ),
    "pruning.density": Field(
        0.01,
        "Trained weights ÷ all weights of the prunable kernels; 1.0 trains the dense network.",
        allowed=Allowed(is_density, "above 0 and at most 1, e.g. 0.01 to train 1 % of the weights"),
        needs=(OWN_DENSITY, REWINDS),
    ),
    "pruning.pattern": Field(
        "",
        "N:M, e.g. `2:4`: of every M inputs in a row, each output keeps N weights. `pruning.density` has to be N/M, "
        "`pruning.method` `uniform` or a score. Layers of `dense_layers` and `layer_densities` have no pattern, and "
        "their weights come on top of the density.",
        allowed=Allowed(lambda text: text == "" or pruning.is_pattern(text), "'N:M' with 0 < N < M, e.g. '2:4', or ''"),
        needs=(OWN_DENSITY, REWINDS),
        added=True,
    ),
    "pruning.num_steps": Field(
        0,
        "Steps of a score; 1: one shot, 0: the method's own number.",
        allowed=at_least(1, zero="for the method's own number"),
        needs=(SCORE_IN_USE,),
    ),
    "pruning.schedule": Field(
        "exp", "How the density falls over the steps of a score.", choices=schedules.SCHEDULES, needs=(SCORE_IN_USE,)
    ),
    "pruning.num_batches": Field(
        1,
        "Batches over which a score averages its gradients in each step.",
        allowed=at_least(1),
        needs=(SCORE_IN_USE,),
    ),
    "pruning.scope": Field(
        "global",
        "A score compares the weights of all layers, or of one layer: then each layer has the same density.",
        choices=by_score.SCOPES,
        needs=(SCORE_IN_USE, REWINDS),
    ),
    "pruning.allocation": Field(
        "",
        'A score fills the counts of this allocation; "": it sets the counts itself.',
        choices=("", *pruning.ALLOCATIONS),
        needs=(SCORE_IN_USE, REWINDS),
    ),
    "pruning.loss": Field(
        "cross_entropy",
        "The loss of a score; `nll_logits`: as in the original code.",
        choices=LOSSES,
        needs=(SCORE_IN_USE,),
    ),
    "pruning.run": Field(
        "",
        "Directory of the run whose masks `from_run` takes.",
        needs=(MASKS_OF_RUN,),
    ),
    "pruning.rewind_epoch": Field(
        -1,
        "At least 0: `from_run` prunes the trained weights of that run by magnitude, to `pruning.density`, and trains "
        "on from its weights after so many epochs (0: from its initial ones). `keep_epochs` of that run must have had "
        "the epoch. -1: it takes the masks only.",
        allowed=at_least(-1),
        needs=(MASKS_OF_RUN,),
        added=True,
    ),
    "pruning.dense_layers": Field(
        (),
        "Path patterns of layers that keep all their weights. The density of the whole network stays as asked.",
        allowed=Allowed(are_texts, "path patterns, e.g. ('fcs.*',)"),
        needs=(OWN_DENSITY, REWINDS),
    ),
    "pruning.layer_densities": Field(
        (),
        "Densities of single layers. The density of the whole network stays as asked.",
        allowed=Allowed(
            lambda pairs: are_pairs(pairs, is_density),
            "(pattern, density) pairs with densities above 0 and at most 1, e.g. (('fc', 0.5),)",
        ),
        needs=(OWN_DENSITY, REWINDS),
    ),
    # Weights that move while training.
    "sparse_training.method": Field(
        "static",
        "`static` keeps the support; `rigl` and `set` move weights while training; `gmp` prunes them gradually by "
        "magnitude, from `initial_density` to `pruning.density`.",
        choices=dynamic.METHODS,
        by_step=ByStep(dynamic.fractions_by_step, "share of the weights to move or prune"),
    ),
    "sparse_training.update_every": Field(
        100, "Steps between two moves or prunings of weights.", allowed=at_least(1), needs=(SUPPORT_CHANGES,)
    ),
    "sparse_training.stop_fraction": Field(
        0.75,
        "Weights move, or are pruned, up to this part of the training steps.",
        allowed=FROM_0_TO_1,
        needs=(SUPPORT_CHANGES,),
    ),
    "sparse_training.drop_fraction": Field(
        0.3,
        "The part of a layer's trained weights that moves at the start; it falls to 0 by a cosine.",
        allowed=FROM_0_TO_1,
        needs=(WEIGHTS_MOVE,),
    ),
    "sparse_training.begin_fraction": Field(
        0.0,
        "`gmp` prunes from this part of the training steps on.",
        allowed=FROM_0_TO_1,
        needs=(GRADUAL_PRUNING,),
        added=True,
    ),
    "sparse_training.initial_density": Field(
        1.0,
        "The density that `gmp` starts with, at random positions.",
        allowed=Allowed(is_density, "above 0 and at most 1"),
        needs=(GRADUAL_PRUNING,),
        added=True,
    ),
    # How the network is computed.
    "execution.form": Field(
        "auto",
        "How trained weights are stored: dense with a mask, or their values only; `auto`: as takes less memory.",
        choices=("auto", *pruning.FORMS),
        resume=True,
    ),
    "execution.method": Field(
        "auto",
        "How compact layers are computed; `auto`: by predicted time.",
        choices=cost_model.SETTINGS,
        renamed=cost_model.RENAMED,
        resume=True,
    ),
    "execution.layer_methods": Field(
        (),
        "How single compact layers are computed.",
        allowed=Allowed(
            lambda pairs: are_pairs(pairs, lambda method: method in (*cost_model.SETTINGS, *cost_model.RENAMED)),
            f"(pattern, method) pairs with a method of: {', '.join(cost_model.SETTINGS)}, "
            "e.g. (('layer1.*', 'on_support'),)",
        ),
        resume=True,
    ),
    "execution.explain": Field(
        False, "Print the method of each layer and the predicted times of all methods.", resume=True
    ),
    "execution.min_loop": Field(
        64,
        "At least this many equal blocks in a row are one loop, which is compiled once.",
        allowed=at_least(2, zero="for no loops"),
        resume=True,
    ),
    "execution.remat": Field(
        False, "Compute the inside of each block again for the gradient: less memory, more time.", resume=True
    ),
    "execution.keep_compiled": Field(
        True,
        "Keep compiled programs in `~/.cache/dctps_jax/compiled`, for later starts.",
        resume=True,
        added=True,
    ),
    "execution.keep_memory": Field(
        True, "On a CPU, keep freed memory for the next step, which is faster.", resume=True
    ),
    # The optimiser.
    "optimizer.name": Field("adam", "The optimiser, one of optax's. `muon` is for dense networks.", choices=OPTIMIZERS),
    "optimizer.options": Field(
        (),
        "More arguments of the optimiser, those of optax.",
        allowed=Allowed(lambda pairs: are_pairs(pairs, is_option), "(name, value) pairs, e.g. (('b1', 0.95),)"),
        added=True,
    ),
    "optimizer.learning_rate": Field(
        0.001,
        "The learning rate at the start.",
        allowed=Allowed(lambda value: 0 < value < math.inf, "above 0 and finite"),
    ),
    "optimizer.momentum": Field(
        0.9,
        "The momentum of `sgd` and `nesterov`.",
        allowed=BELOW_1,
        needs=(Need("optimizer.name", lambda name: name in ("sgd", "nesterov")),),
    ),
    "optimizer.weight_decay": Field(
        5e-4,
        "L2 on every trainable parameter; decoupled with `adamw`, `nadamw`, `lion`, `adan` and `muon`.",
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
        "Scale the gradients down to this norm of all of them together, where theirs is larger; 0: never.",
        allowed=FINITE,
        added=True,
    ),
    "optimizer.accumulate_steps": Field(
        1,
        "Change the parameters at each of so many steps only, by the mean gradient of these steps.",
        allowed=at_least(1),
        added=True,
    ),
    "optimizer.label_smoothing": Field(
        0.0,
        "The part of a label that is shared among all classes (Szegedy et al. 2016).",
        allowed=BELOW_1,
        added=True,
    ),
    "optimizer.ema_decay": Field(
        0.0,
        "Keep a moving average of the weights, e.g. by 0.999 a step, and test it as well; 0: none.",
        allowed=BELOW_1,
        added=True,
    ),
    "optimizer.schedule": Field(
        "milestones",
        "The learning rate as a function of the training step: constant, lower after milestones, half a cosine "
        "(Loshchilov & Hutter 2017), one cycle (Smith & Topin 2018), or lower where the training loss stays.",
        choices=SCHEDULES,
        added=True,
        by_step=ByStep(rates_by_step, "learning rate"),
    ),
    "optimizer.warmup_epochs": Field(
        0.0,
        "The learning rate rises linearly for so many epochs; with `one_cycle` along a cosine (0: 30 % of all).",
        allowed=FINITE,
        added=True,
    ),
    "optimizer.patience": Field(
        10,
        "With the schedule `plateau`: epochs without a lower loss after which the rate is multiplied by `decay_rate`.",
        allowed=at_least(1),
        added=True,
    ),
    "optimizer.milestones": Field(
        (),
        "At the end of each of these epochs the learning rate is multiplied by `decay_rate`.",
        allowed=Allowed(are_epochs, "whole epochs of at least 1 in increasing order, e.g. (120, 160)"),
    ),
    "optimizer.decay_rate": Field(
        0.1,
        "The learning rate is multiplied by it at each milestone, and on a plateau.",
        allowed=Allowed(lambda value: 0 < value <= 1, "above 0 and at most 1"),
    ),
}


def get_config() -> Any:
    """Return the config of a run, every field at its default."""
    config: Any = ConfigDict()
    for name, field in FIELDS.items():
        section, _, last = name.rpartition(".")
        if section and section not in config:
            config[section] = ConfigDict()
        node = config[section] if section else config
        if field.optional:
            node[last] = config_dict.placeholder(type(field.default))  # takes None from the command line
        node[last] = field.default
    return config
