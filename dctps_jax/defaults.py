"""The protocol of the paper, on which every config builds: defaults and what the fields mean.

200 epochs of Adam (0.001) or SGD (0.1, momentum 0.9) at batch 128, L2 of 5e-4 added to the gradient of every trainable
parameter, 90 % of the training images to train and 10 % to validate, random crops and flips. SGD with its schedule is

    --config.optimizer.name=sgd --config.optimizer.learning_rate=0.1 "--config.optimizer.milestones=(120, 160)"
"""

from typing import Any

from ml_collections import ConfigDict, config_dict

from dctps_jax.data.dataset import MAX_PIXELS


def get_config() -> Any:
    """Return the config of a run, every field at its default."""
    config: Any = ConfigDict()
    config.seed = 0
    config.num_seeds = 1  # more than one: runs with seed, seed + 1, … in a directory each, and their mean
    config.batch_size = 128  # over all devices
    config.eval_batch_size = 256
    config.num_epochs = 200

    config.model = ConfigDict()
    config.model.name = "lenet"
    config.model.offset = config_dict.placeholder(str)  # a name in dctps_jax.offsets ("dct", "hadamard"), or None
    config.model.offset = "dct"
    config.model.alpha_trainable = True
    config.model.init = "kaiming_normal"  # without offset (Fixup has its own); with one the start is zero
    config.model.width = 64  # ResNets: channels of the first stage
    config.model.stable = False  # ResNets: residual branches over √blocks
    config.model.dtype = "float32"  # of the computation, or "bfloat16"; parameters are float32

    config.data = ConfigDict()
    config.data.name = "cifar10"
    config.data.dir = ""  # folder of the files; "": ~/.cache/dctps_jax/data
    config.data.cache_dir = ""  # folder for decoded copies; "": beside the files
    config.data.image_size = 0  # image_folder and synthetic: bring images to this size; 0: as they are
    config.data.max_pixels = MAX_PIXELS  # of an image file before it is resized; one with more is refused undecoded
    config.data.download = True  # fetch an official archive that is missing
    config.data.mean = ()  # a channel, of pixels in [0, 1]; (): the data set's own
    config.data.std = ()
    config.data.augment = True  # random crops (padding 4) and flips
    config.data.train_fraction = 0.9

    config.pruning = ConfigDict()
    config.pruning.method = "epl"
    config.pruning.density = 0.01  # trained ÷ all kernel weights; 1.0 trains the dense network
    config.pruning.num_steps = 0  # of scores; 1: one shot, 0: the method's own number
    config.pruning.schedule = "exp"  # or "linear"
    config.pruning.num_batches = 1  # that a score averages its gradients over, at every step
    config.pruning.scope = "global"  # scores compare all layers, or "layer": the density is that of each layer
    config.pruning.allocation = ""  # scores fill the counts of an allocation, e.g. "epl"
    config.pruning.loss = "cross_entropy"  # or "nll_logits", the original's
    config.pruning.run = ""  # directory of the run whose masks "from_run" takes
    config.pruning.dense_layers = ()  # path patterns of layers that keep all weights, e.g. ("conv1",)
    config.pruning.layer_densities = ()  # (pattern, density) pairs, e.g. (("fc", 0.5),)

    config.sparse_training = ConfigDict()
    config.sparse_training.method = "static"  # or "rigl", "set"
    config.sparse_training.update_every = 100
    config.sparse_training.stop_fraction = 0.75
    config.sparse_training.drop_fraction = 0.3

    config.execution = ConfigDict()
    config.execution.form = "auto"  # of the trained weights: "masked", "compact"; "auto": the one that takes less room
    config.execution.method = "auto"  # of compact layers: a name in dctps_jax/ops/README.md; "auto": by predicted time
    config.execution.layer_methods = ()  # (pattern, method) pairs, e.g. (("layer1.*", "on_support"),)
    config.execution.explain = False  # print the method of each layer and the predicted times of all methods
    config.execution.min_loop = 64  # so many equal blocks in a row are one loop, compiled once; 0: never
    config.execution.remat = False  # compute the insides of blocks again for the gradient: less memory, more time
    config.execution.keep_memory = True  # on a CPU: keep freed memory for the next step, which is faster

    config.optimizer = ConfigDict()
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 0.001
    config.optimizer.momentum = 0.9  # of sgd
    config.optimizer.weight_decay = 5e-4
    config.optimizer.milestones = ()  # epochs at whose end the rate is multiplied by decay_rate
    config.optimizer.decay_rate = 0.1

    config.steps_per_dispatch = 0  # steps in one call to the device; 0: 1 on CPU, 50 elsewhere
    config.log_every_steps = 50  # how often the loss is looked at between the ends of epochs
    config.checkpoint_every_steps = 0  # besides the end of every epoch; 0: only there
    config.tensorboard = True  # if tensorboardX is installed
    config.multi_host = False  # True: jax.distributed.initialize() first; all hosts need the same --workdir
    return config
