"""MobileNetV2 for small images (Sandler et al. 2018): ReLU, not ReLU6; stride 1 in the stem and the second stage."""

import jax
from flax import nnx

from dctps_jax.models.blocks import run_blocks
from dctps_jax.models.parts import Parts, ResidualSum, global_average_pool
from dctps_jax.ops.fusion import materialized

# (expansion, features, blocks, stride of the first block)
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nnx.Module):
    """Expand by a 1×1 convolution, filter each channel by 3×3, project by 1×1; a shortcut wherever the stride is 1."""

    def __init__(self, parts: Parts, in_features: int, features: int, expansion: int, stride: int):
        hidden = expansion * in_features
        self.conv1 = parts.conv(in_features, hidden, (1, 1))
        self.bn1 = parts.norm(hidden)
        self.conv2 = parts.conv(hidden, hidden, (3, 3), strides=stride, padding=1, feature_group_count=hidden)
        self.bn2 = parts.norm(hidden)
        self.conv3 = parts.conv(hidden, features, (1, 1))
        self.bn3 = parts.norm(features)
        projected = stride == 1 and in_features != features
        self.shortcut = nnx.List([parts.conv(in_features, features, (1, 1)), parts.norm(features)] if projected else [])
        self.stride = stride
        self.add = ResidualSum()

    def __call__(self, x: jax.Array) -> jax.Array:
        out = self.bn1(self.conv1(x), relu=True)
        out = self.bn2(self.conv2(out), relu=True)
        out = self.bn3(self.conv3(out))
        if self.stride != 1:
            return out
        for layer in self.shortcut:
            x = layer(x)
        return materialized(self.add(out, x))


class MobileNetV2(nnx.Module):
    """A 3×3 stem, inverted residual blocks (seventeen), a 1×1 convolution to 1280 channels, average, linear."""

    MIN_IMAGE_SIZE = 8

    def __init__(self, parts: Parts, num_classes: int, stages: tuple[tuple[int, int, int, int], ...]):
        self.running = parts.running
        self.conv1 = parts.conv(parts.channels, 32, (3, 3), padding=1)
        self.bn1 = parts.norm(32)
        blocks = []
        in_features = 32
        for expansion, features, num_blocks, first_stride in stages:
            for index in range(num_blocks):
                stride = first_stride if index == 0 else 1
                blocks.append(InvertedResidual(parts, in_features, features, expansion, stride))
                in_features = features
        self.layers = nnx.List(blocks)
        self.conv2 = parts.conv(in_features, 1280, (1, 1))
        self.bn2 = parts.norm(1280)
        self.linear = parts.linear(1280, num_classes)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.bn1(self.conv1(x), relu=True)
        x = run_blocks(self.layers, x, self.running)
        x = self.bn2(self.conv2(x), relu=True)
        return self.linear(global_average_pool(x))
