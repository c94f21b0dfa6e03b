"""ResNet18 on CIFAR-10, with the DCT offset and 1 % of its weights, equally many in each layer.

    python train.py --config configs/resnet18_cifar10.py --workdir runs/resnet18_cifar10

The baseline without offset: ``--config.model.offset=None``. Another density: ``--config.pruning.density=0.001``.

Seen: width 16, three epochs, one seed, images re-encoded as JPEG: 34.9 %, where the baseline reaches 46.5 %
(results/resnet18_cifar10_deep/). Width 64 and the 200 epochs: not run.
"""

from dctps_jax import defaults


def get_config():
    config = defaults.get_config()
    config.model.name = "resnet18"
    config.data.name = "cifar10"
    return config
