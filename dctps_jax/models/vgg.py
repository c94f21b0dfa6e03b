"""VGG with BatchNorm and a single linear layer, for small images (Simonyan & Zisserman 2015)."""

import jax
from flax import nnx

from dctps_jax.layers import DCTpSConv
from dctps_jax.models.blocks import run_block
from dctps_jax.models.normalization import BatchNorm
from dctps_jax.models.parts import Parts, global_average_pool, halve_by_maximum

# Channels of the 3×3 convolutions between the max-pools.
STAGES = {
    "vgg11": ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    "vgg13": ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    "vgg16": ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
    "vgg19": ((64, 64), (128, 128), (256, 256, 256, 256), (512, 512, 512, 512), (512, 512, 512, 512)),
}


class ConvNormReLU(nnx.Module):
    """A convolution, BatchNorm and ReLU. A running network makes it from its layers."""

    def __init__(self, conv: DCTpSConv, norm: BatchNorm):
        self.conv, self.norm = conv, norm

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.conv(x), relu=True)


class VGG(nnx.Module):
    """3×3 convolutions with BatchNorm and ReLU, max-pools between stages, an average over positions, a linear layer."""

    MIN_IMAGE_SIZE = 16

    def __init__(self, parts: Parts, stages: tuple[tuple[int, ...], ...], num_classes: int):
        self.running = parts.running
        feature = []
        in_features = parts.channels
        for stage, channels in enumerate(stages):
            if stage > 0:
                feature.append(halve_by_maximum)
            for features in channels:
                conv = parts.conv(in_features, features, (3, 3), padding=1)
                feature += [conv, parts.norm(features), nnx.relu]
                in_features = features
        self.feature = nnx.List(feature)
        self.classifier = parts.linear(in_features, num_classes)

    def __call__(self, x: jax.Array) -> jax.Array:
        layers = iter(self.feature)
        for layer in layers:
            if isinstance(layer, DCTpSConv):
                x = run_block(ConvNormReLU(layer, next(layers)), x, self.running)
                next(layers)
            else:
                x = layer(x)
        return self.classifier(global_average_pool(x))
