"""Fixup-ResNet110 on CIFAR-10, with the DCT offset and 1 % of its weights, equally many in each layer.

    python train.py --config configs/fixup_resnet110_cifar10.py --workdir runs/fixup_resnet110_cifar10

The baseline without offset: ``--config.model.offset=None``. Another density: ``--config.pruning.density=0.001``.

Not run: what it reaches is not known.
"""

from dctps_jax import defaults


def get_config():
    config = defaults.get_config()
    config.model.name = "fixup_resnet110"
    config.data.name = "cifar10"
    return config
