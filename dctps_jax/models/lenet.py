"""LeNet-5 for colour images, as in the paper: no biases, ReLU, average pooling, 82 hidden units."""

from functools import partial

import jax
from flax import nnx

from dctps_jax.models.parts import Parts, global_average_pool, halve_by_average


class LeNet(nnx.Module):
    """Three 5×5 convolutions (6, 16, 120 channels) and two linear layers; 61,510 weights for ten classes.

    The last feature map has one position for 32×32 images. Larger images are averaged over their positions, so that the
    weights are the same for every size.
    """

    MIN_IMAGE_SIZE = 32

    def __init__(self, parts: Parts, num_classes: int):
        conv = partial(parts.conv, kernel_size=(5, 5), padding="VALID")
        self.convs = nnx.List(
            [
                *(conv(parts.channels, 6), nnx.relu, halve_by_average),
                *(conv(6, 16), nnx.relu, halve_by_average),
                *(conv(16, 120), nnx.relu),
            ],
        )
        self.fcs = nnx.List(
            [parts.linear(120, 82, use_bias=False), nnx.relu, parts.linear(82, num_classes, use_bias=False)]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.convs:
            x = layer(x)
        x = global_average_pool(x)
        for layer in self.fcs:
            x = layer(x)
        return x
