"""A recipe of today: ResNet18 with the DCT offset and 1 % of its weights on CIFAR-10, in 20 epochs.

    python train.py --config configs/recipes/modern_cifar10.py --workdir runs/modern

SGD with Nesterov's momentum, a warm-up and half a cosine, weight decay on kernels only, label smoothing, cutout, and
averaged weights, which are tested beside the last and the best. docs/recipes.md says where each comes from.

Not run: what it reaches is not known.
"""

from dctps_jax import defaults


def get_config():
    config = defaults.get_config()
    config.num_epochs = 20
    config.batch_size = 128
    config.model.name = "resnet18"
    config.data.name = "cifar10"
    config.data.cutout = 8
    config.pruning.density = 0.01
    config.optimizer.name = "nesterov"
    config.optimizer.learning_rate = 0.1
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 2.0
    config.optimizer.decay = "kernels"
    config.optimizer.clip_norm = 1.0
    config.optimizer.label_smoothing = 0.1
    config.optimizer.ema_decay = 0.999
    return config
