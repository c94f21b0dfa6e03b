"""VGG19 on CIFAR-10, with the DCT offset and 1 % of its weights, equally many in each layer.

    python train.py --config configs/vgg19_cifar10.py --workdir runs/vgg19_cifar10

The baseline without offset: ``--config.model.offset=None``. Another density: ``--config.pruning.density=0.001``.

Seen, with one seed, on images re-encoded as JPEG: with 0.01 % of the weights 67.3 % after the 200 epochs, in about six
minutes on an H200 (results/vgg19_cifar10_lowest_density/); with 1 % 71.1 % after 12 epochs, where the baseline reaches
75.7 % (results/vgg19_cifar10_offset/). The 200 epochs with 1 %: not run.
"""

from dctps_jax import defaults


def get_config():
    config = defaults.get_config()
    config.model.name = "vgg19"
    config.data.name = "cifar10"
    return config
