"""Fixup ResNets: CIFAR ResNets without normalisation, trainable by their initial weights (Zhang et al. 2019)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dctps_jax.models.blocks import run_blocks
from dctps_jax.models.parts import Parts, ResidualSum, global_average_pool
from dctps_jax.offsets import Offset
from dctps_jax.ops.fusion import materialized

BLOCKS_PER_STAGE = {
    "fixup_resnet20": 3,
    "fixup_resnet32": 5,
    "fixup_resnet44": 7,
    "fixup_resnet56": 9,
    "fixup_resnet110": 18,
    "fixup_resnet1202": 200,
}


class FixupBlock(nnx.Module):
    """Two 3×3 convolutions with scalar biases around them and a scalar scale behind them.

    A block starts as the identity: its second convolution is zero (α = 0 with an offset). Its first convolution has the
    standard deviation ``√(2 / (9·features)) / √blocks``. With an offset, α sets its scale instead, see
    :func:`fixup_alpha`.
    """

    def __init__(self, parts: Parts, in_features: int, features: int, stride: int, num_blocks: int):
        std = math.sqrt(2 / (9 * features * num_blocks))
        self.bias1a = parts.scalar(0.0)
        self.conv1 = parts.conv(
            in_features,
            features,
            (3, 3),
            strides=stride,
            padding=1,
            kernel_init=nnx.initializers.normal(std),
            alpha_init=1.0 if parts.offset is None else fixup_alpha(parts.offset, in_features, features, std),
        )
        self.bias1b = parts.scalar(0.0)
        self.bias2a = parts.scalar(0.0)
        self.conv2 = parts.conv(
            features, features, (3, 3), padding=1, kernel_init=nnx.initializers.zeros, alpha_init=0.0
        )
        self.scale = parts.scalar(1.0)
        self.bias2b = parts.scalar(0.0)
        self.stride = stride
        self.add = ResidualSum()

    def __call__(self, x: jax.Array) -> jax.Array:
        out = nnx.relu(self.conv1(x + self.bias1a) + self.bias1b)
        out = self.conv2(out + self.bias2a) * self.scale + self.bias2b
        if self.stride != 1:
            x = (x + self.bias1a)[:, :: self.stride, :: self.stride]
            x = jnp.concatenate((x, jnp.zeros_like(x)), axis=-1)
        return materialized(nnx.relu(self.add(out, x)))


def fixup_alpha(offset: Offset, in_features: int, features: int, std: float) -> float:
    """Return the initial α of a block's first convolution, as in the original.

    ``√(E‖column of the Fixup kernel‖ / mean ‖column of D‖)``, where a column of n = 9·in_features normal numbers has
    the expected norm ``√2 · std · Γ((n+1)/2) / Γ(n/2)``. Without the outer root the norms would be equal. The root
    stays because the published results were made with it.
    """
    n = 9 * in_features
    column_norm = math.sqrt(2) * std * math.exp(math.lgamma((n + 1) / 2) - math.lgamma(n / 2))
    offset_norm = np.linalg.norm(offset.matrix(n, features), axis=0).mean()
    return math.sqrt(column_norm / offset_norm)


class FixupResNet(nnx.Module):
    """A 3×3 stem, stages of 16, 32 and 64 channels, the average over positions, a linear layer that starts at 0."""

    MIN_IMAGE_SIZE = 4

    def __init__(self, parts: Parts, blocks_per_stage: int, num_classes: int):
        # PyTorch's default for convolutions, uniform within ±1/√fan_in. Fixup leaves only this kernel unchanged.
        stem_init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        self.running = parts.running
        self.conv1 = parts.conv(parts.channels, 16, (3, 3), padding=1, kernel_init=stem_init, alpha_init=1.0)
        self.bias1 = parts.scalar(0.0)
        in_features = 16
        stages = []
        for features in (16, 32, 64):
            blocks = []
            for index in range(blocks_per_stage):
                stride = 2 if features > 16 and index == 0 else 1
                blocks.append(FixupBlock(parts, in_features, features, stride, 3 * blocks_per_stage))
                in_features = features
            stages.append(nnx.List(blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.bias2 = parts.scalar(0.0)
        self.fc = parts.linear(64, num_classes, kernel_init=nnx.initializers.zeros, alpha_init=0.0)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.conv1(x) + self.bias1)
        for stage in (self.layer1, self.layer2, self.layer3):
            x = run_blocks(stage, x, self.running)
        return self.fc(global_average_pool(x) + self.bias2)
