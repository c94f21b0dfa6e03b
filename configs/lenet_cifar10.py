"""LeNet-5 on CIFAR-10, with the DCT offset and 1 % of its weights, equally many in each layer.

    python train.py --config configs/lenet_cifar10.py --workdir runs/lenet_cifar10

The baseline without offset: ``--config.model.offset=None``. Another density: ``--config.pruning.density=0.001``.

Seen: 31.2 ± 1.5 % of the test images right after 15 epochs (three seeds, results/lenet_cifar10_density/), each in 6 to
9 minutes on a busy machine of two CPU cores. 41.3 ± 0.6 % after the 200 epochs (three seeds,
results/lenet_cifar10_200_epochs/), each in 19 to 81 minutes. Images re-encoded as JPEG.
"""

from dctps_jax import defaults


def get_config():
    config = defaults.get_config()
    config.model.name = "lenet"
    config.data.name = "cifar10"
    return config
