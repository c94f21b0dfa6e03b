"""A network written with plain NNX, converted: an MLP-Mixer on the digits, dense and with 0.3 % of its weights.

python examples/mixer_digits.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from dctps_jax import convert


class Mlp(nnx.Module):
    def __init__(self, features, hidden, rngs):
        self.expand = nnx.Linear(features, hidden, rngs=rngs)
        self.contract = nnx.Linear(hidden, features, rngs=rngs)

    def __call__(self, x):
        return self.contract(nnx.gelu(self.expand(x)))


class Block(nnx.Module):
    def __init__(self, patches, features, rngs):
        self.norm_tokens, self.norm_channels = nnx.LayerNorm(features, rngs=rngs), nnx.LayerNorm(features, rngs=rngs)
        self.tokens, self.channels = Mlp(patches, 64, rngs), Mlp(features, 256, rngs)

    def __call__(self, x):
        x += jnp.swapaxes(self.tokens(jnp.swapaxes(self.norm_tokens(x), 1, 2)), 1, 2)
        return x + self.channels(self.norm_channels(x))


class Mixer(nnx.Module):
    """MLP-Mixer (Tolstikhin et al. 2021) for images of 8×8 pixels in patches of 2×2."""

    def __init__(self, rngs, features=64, depth=4, num_classes=10):
        self.patches = nnx.Conv(1, features, (2, 2), strides=(2, 2), rngs=rngs)
        self.blocks = nnx.List([Block(16, features, rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.head = nnx.Linear(features, num_classes, rngs=rngs)

    def __call__(self, x):
        x = self.patches(x).reshape(len(x), 16, -1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def train(model, images, labels, num_epochs, batch_size=60):
    optimizer = nnx.Optimizer(model, optax.adam(2e-3), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, images, labels):
        def loss_fn(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

        optimizer.update(model, nnx.grad(loss_fn)(model))

    rng = np.random.default_rng(0)
    for _ in range(num_epochs):
        order = rng.permutation(len(images)).reshape(-1, batch_size)
        for batch in order:
            step(model, optimizer, images[batch], labels[batch])


def main(num_epochs=20, depth=4):
    flat, labels = map(jnp.asarray, load_digits(return_X_y=True))
    images = flat.reshape(-1, 8, 8, 1).astype(jnp.float32) / 16
    dense = Mixer(nnx.Rngs(0), depth=depth)
    models = {
        "dense": dense,
        "0.3 % and the DCT offset": convert(dense, density=0.003, method="erk", exclude=("patches", "head")),
        "0.3 % alone": convert(dense, density=0.003, method="erk", exclude=("patches", "head"), offset=None),
    }
    accuracies = {}
    for name, model in models.items():
        train(model, images[:1500], labels[:1500], num_epochs)
        accuracies[name] = float((model(images[1500:]).argmax(-1) == labels[1500:]).mean())
        weights = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
        print(f"{name}: {weights:,} parameters, {accuracies[name]:.1%} of the digits that it has not seen")
    return accuracies


if __name__ == "__main__":
    main()
