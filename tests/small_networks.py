"""Small networks, for tests whose time is the compiler's: one of each family, and one with a bit of everything."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dctps_jax import DCTpSConv, DCTpSLinear
from dctps_jax.models.fixup_resnet import FixupResNet
from dctps_jax.models.lenet import LeNet
from dctps_jax.models.mobilenet import MobileNetV2
from dctps_jax.models.resnet import BasicBlock, ResNet
from dctps_jax.models.vgg import VGG

# What the fixture `small_families` adds to the networks that create_model knows.
FAMILIES = {
    "lenet": LeNet,
    "small_resnet": partial(ResNet, block=BasicBlock, num_blocks=(1, 1, 1, 1), width=4),
    "small_vgg": partial(VGG, stages=((8,), (16,), (16, 16))),
    "small_mobilenet": partial(MobileNetV2, stages=((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 1, 2))),
    "fixup_small": partial(FixupResNet, blocks_per_stage=1),
}


def normal(key, shape, dtype):
    """An initialiser that compiles nothing."""
    values = np.random.default_rng(sum(shape)).normal(size=shape)
    return jnp.asarray(values * math.sqrt(2 / math.prod(shape[:-1])), dtype)


class SmallNet(nnx.Module):
    """A stem, a residual block with a stride, the average over positions, a linear layer: 3 channels → 10 classes."""

    def __init__(self, offset):
        rngs = nnx.Rngs(0)
        conv = partial(DCTpSConv, kernel_size=(3, 3), use_bias=False, offset=offset, kernel_init=normal, rngs=rngs)
        self.conv1 = conv(3, 8)
        self.bn1 = nnx.BatchNorm(8, rngs=rngs)
        self.conv2 = conv(8, 32, strides=2)
        self.bn2 = nnx.BatchNorm(32, rngs=rngs)
        self.shortcut = conv(8, 32, kernel_size=(1, 1), strides=2)
        self.fc = DCTpSLinear(32, 10, offset=offset, kernel_init=normal, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = nnx.relu(self.bn2(self.conv2(x)) + self.shortcut(x))
        return self.fc(x.mean((1, 2)))


def small_batch(seed=0):
    """Images and labels for scores."""
    images, labels = jax.random.split(jax.random.key(seed))
    return jax.random.normal(images, (8, 32, 32, 3)), jax.random.randint(labels, (8,), 0, 10)
