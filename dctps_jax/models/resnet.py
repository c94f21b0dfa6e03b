"""ResNets: a stem for small or for large images, four stages, basic or bottleneck blocks (He et al. 2016)."""

import math

import jax
from flax import nnx

from dctps_jax.models.blocks import run_blocks
from dctps_jax.models.parts import Parts, ResidualSum, global_average_pool, halve_by_maximum_of_3x3
from dctps_jax.ops.fusion import materialized


class BasicBlock(nnx.Module):
    """Two 3×3 convolutions beside a shortcut."""

    EXPANSION = 1

    def __init__(self, parts: Parts, in_features: int, features: int, stride: int, residual_scale: float):
        self.conv1 = parts.conv(in_features, features, (3, 3), strides=stride, padding=1)
        self.bn1 = parts.norm(features)
        self.conv2 = parts.conv(features, features, (3, 3), padding=1)
        self.bn2 = parts.norm(features)
        self.shortcut = projection(parts, in_features, features, stride)
        self.residual_scale = residual_scale
        self.add = ResidualSum()

    def __call__(self, x: jax.Array) -> jax.Array:
        out = self.bn1(self.conv1(x), relu=True)
        out = self.bn2(self.conv2(out))
        for layer in self.shortcut:
            x = layer(x)
        return materialized(nnx.relu(self.add(out * self.residual_scale, x)))


class Bottleneck(nnx.Module):
    """1×1, 3×3 and 1×1 convolutions, the last four times as wide, beside a shortcut."""

    EXPANSION = 4

    def __init__(self, parts: Parts, in_features: int, features: int, stride: int, residual_scale: float):
        out_features = self.EXPANSION * features
        self.conv1 = parts.conv(in_features, features, (1, 1))
        self.bn1 = parts.norm(features)
        self.conv2 = parts.conv(features, features, (3, 3), strides=stride, padding=1)
        self.bn2 = parts.norm(features)
        self.conv3 = parts.conv(features, out_features, (1, 1))
        self.bn3 = parts.norm(out_features)
        self.shortcut = projection(parts, in_features, out_features, stride)
        self.residual_scale = residual_scale
        self.add = ResidualSum()

    def __call__(self, x: jax.Array) -> jax.Array:
        out = self.bn1(self.conv1(x), relu=True)
        out = self.bn2(self.conv2(out), relu=True)
        out = self.bn3(self.conv3(out))
        for layer in self.shortcut:
            x = layer(x)
        return materialized(nnx.relu(self.add(out * self.residual_scale, x)))


def projection(parts: Parts, in_features: int, out_features: int, stride: int) -> nnx.List:
    """Return the layers of a shortcut: none for the identity, else a 1×1 convolution with BatchNorm."""
    if stride == 1 and in_features == out_features:
        return nnx.List([])
    return nnx.List([parts.conv(in_features, out_features, (1, 1), strides=stride), parts.norm(out_features)])


BLOCKS = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet110": (Bottleneck, (3, 4, 26, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}


# Kernel size and stride of the first convolution, and whether maxima of 3×3 follow.
STEMS = {"cifar": (3, 1, False), "imagenet": (7, 2, True)}


class ResNet(nnx.Module):
    """A stem, four stages that double the width and halve the size, the average over positions, a linear layer.

    The ``stem`` "cifar" is a 3×3 convolution. "imagenet" reduces height and width to a quarter: a 7×7 convolution with
    stride 2, then the maxima of 3×3 with stride 2.
    ``stable`` scales every residual branch by ``1/√(number of blocks)`` (Stable ResNet, Hayou et al. 2021).
    """

    MIN_IMAGE_SIZE = 8

    def __init__(
        self,
        parts: Parts,
        block: type[BasicBlock] | type[Bottleneck],
        num_blocks: tuple[int, ...],
        num_classes: int,
        *,
        width: int = 64,
        stable: bool = False,
        stem: str = "cifar",
    ):
        residual_scale = 1 / math.sqrt(sum(num_blocks)) if stable else 1.0
        self.running = parts.running
        size, stride, self.pools = STEMS[stem]
        self.conv1 = parts.conv(parts.channels, width, (size, size), strides=stride, padding=size // 2)
        self.bn1 = parts.norm(width)
        in_features = width
        stages = []
        for stage, depth in enumerate(num_blocks):
            features = width * 2**stage
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(parts, in_features, features, stride, residual_scale))
                in_features = features * block.EXPANSION
            stages.append(nnx.List(blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = parts.linear(in_features, num_classes)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.bn1(self.conv1(x), relu=True)
        if self.pools:
            x = halve_by_maximum_of_3x3(x)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = run_blocks(stage, x, self.running)
        return self.fc(global_average_pool(x))
