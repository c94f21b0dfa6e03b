"""A network written with plain NNX: the trainer converts its layers."""

import jax
from flax import nnx


class Block(nnx.Module):
    """A depthwise convolution mixes positions, a 1×1 convolution mixes channels (ConvMixer, Trockman & Kolter 2022)."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.positions = nnx.Conv(width, width, (3, 3), feature_group_count=width, rngs=rngs)
        self.channels = nnx.Conv(width, width, (1, 1), rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + nnx.gelu(self.positions(x))
        return self.dropout(self.norm(nnx.gelu(self.channels(x))))


class Mixer(nnx.Module):
    def __init__(self, num_classes: int, channels: int, width: int, depth: int, rngs: nnx.Rngs):
        self.patches = nnx.Conv(channels, width, (2, 2), strides=2, rngs=rngs)
        self.blocks = nnx.List([Block(width, rngs) for _ in range(depth)])
        self.head = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.gelu(self.patches(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


def build(*, num_classes: int, channels: int, rngs: nnx.Rngs, width: int = 64, depth: int = 2) -> Mixer:
    """``model.name=examples.own_network.mixer:build``; ``width`` and ``depth`` come from ``model.options``."""
    return Mixer(num_classes, channels, width, depth, rngs)
