"""A Vision Transformer in plain NNX, converted: 1 % of its weights on the digits, by allocation and offset.

python examples/vit_digits.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from dctps_jax import convert

BATCH_SIZE = 60


class Block(nnx.Module):
    def __init__(self, features, num_heads, rngs):
        self.norm_attention, self.norm_mlp = nnx.LayerNorm(features, rngs=rngs), nnx.LayerNorm(features, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(num_heads, features, decode=False, rngs=rngs)
        self.expand = nnx.Linear(features, 2 * features, rngs=rngs)
        self.contract = nnx.Linear(2 * features, features, rngs=rngs)

    def __call__(self, x):
        x += self.attention(self.norm_attention(x))
        return x + self.contract(nnx.gelu(self.expand(self.norm_mlp(x))))


class ViT(nnx.Module):
    """Vision Transformer (Dosovitskiy et al. 2021) for images of 8×8 pixels in patches of 4×2."""

    def __init__(self, rngs, features=64, depth=2, num_heads=4, num_classes=10):
        self.patches = nnx.Conv(1, features, (4, 2), strides=(4, 2), rngs=rngs)
        self.places = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, 8, features)))
        self.blocks = nnx.List([Block(features, num_heads, rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.head = nnx.Linear(features, num_classes, rngs=rngs)

    def __call__(self, x):
        x = self.patches(x).reshape(len(x), 8, -1) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


@nnx.jit
def train_epoch(model, optimizer, images, labels, order):
    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def step(carry, batch):
        model, optimizer = carry

        def loss_fn(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(images[batch]), labels[batch]).mean()

        optimizer.update(model, nnx.grad(loss_fn)(model))
        return carry

    step((model, optimizer), order)


def train(model, adam, images, labels, num_epochs, seed):
    optimizer = nnx.Optimizer(model, adam, wrt=nnx.Param)
    rng = np.random.default_rng(seed)
    for _ in range(num_epochs):
        train_epoch(model, optimizer, images, labels, rng.permutation(len(images)).reshape(-1, BATCH_SIZE))


@nnx.jit
def accuracy(model, images, labels):
    return (model(images).argmax(-1) == labels).mean()


def main(num_epochs=30, depth=2, seeds=(0, 1, 2)):
    flat, labels = map(jnp.asarray, load_digits(return_X_y=True))
    images = flat.reshape(-1, 8, 8, 1).astype(jnp.float32) / 16
    # One optimiser for all: the programs of networks of one kind are then compiled once.
    num_steps = num_epochs * 1500 // BATCH_SIZE
    adam = optax.adam(optax.warmup_cosine_decay_schedule(0, 3e-3, num_steps // 8, num_steps))
    variants = {"all weights": None}
    for method in ("epl", "erk"):
        variants |= {f"1 %, {method}, {offset or 'no offset'}": (method, offset) for offset in ("dct", None)}
    accuracies, parameters = {}, {}
    for name, variant in variants.items():
        of_seeds = []
        for seed in seeds:
            model = ViT(nnx.Rngs(seed), depth=depth)
            if variant:
                method, offset = variant
                model = convert(model, density=0.01, method=method, offset=offset, key=jax.random.key(seed))
            parameters[name] = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
            train(model, adam, images[:1500], labels[:1500], num_epochs, seed)
            of_seeds.append(float(accuracy(model, images[1500:], labels[1500:])))
        accuracies[name] = np.mean(of_seeds)
        spread = f"{np.mean(of_seeds):6.1%} ± {np.std(of_seeds):.1%}"
        print(f"{name:22} {parameters[name]:9,} parameters  {spread}", flush=True)
    return accuracies


if __name__ == "__main__":
    main()
