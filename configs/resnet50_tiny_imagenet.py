"""ResNet50 on Tiny ImageNet, with the DCT offset and 1 % of its weights, equally many in each layer.

    python train.py --config configs/resnet50_tiny_imagenet.py --workdir runs/resnet50_tiny_imagenet

The baseline without offset: ``--config.model.offset=None``. Another density: ``--config.pruning.density=0.001``.

Not run: what it reaches is not known.
"""

from dctps_jax import defaults


def get_config():
    config = defaults.get_config()
    config.model.name = "resnet50"
    config.data.name = "tiny_imagenet"
    return config
