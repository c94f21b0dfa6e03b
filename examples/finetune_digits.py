"""Sparse fine-tuning: a network that knows the digits 0 to 4 learns 5 to 9 with 0.5 % of its weights.

Beside it all parameters are fine-tuned, and LoRA of about the same size. What the sparse one has learnt is a file of a
few kilobytes.

python examples/finetune_digits.py
"""

import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from dctps_jax import apply_delta, convert, export_delta

BATCH_SIZE = 50


class Net(nnx.Module):
    def __init__(self, rngs):
        sizes = ((1, 32, 1), (32, 64, 2), (64, 72, 2))
        self.convs = nnx.List([nnx.Conv(a, b, (3, 3), strides=stride, rngs=rngs) for a, b, stride in sizes])
        self.hidden = nnx.Linear(288, 96, rngs=rngs)
        self.head = nnx.Linear(96, 5, rngs=rngs)

    def __call__(self, x):
        for conv in self.convs:
            x = nnx.relu(conv(x))
        return self.head(nnx.relu(self.hidden(x.reshape(len(x), -1))))


@partial(nnx.jit, static_argnames="wrt")
def step(model, optimizer, images, labels, wrt):
    def loss_fn(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    optimizer.update(model, nnx.grad(loss_fn, argnums=nnx.DiffState(0, wrt))(model))


def train(model, adam, images, labels, num_epochs, seed, wrt=nnx.Param):
    optimizer, rng = nnx.Optimizer(model, adam, wrt=wrt), np.random.default_rng(seed)
    for _ in range(num_epochs):
        order = rng.permutation(len(images))[: len(images) // BATCH_SIZE * BATCH_SIZE]
        for batch in order.reshape(-1, BATCH_SIZE):
            step(model, optimizer, images[batch], labels[batch], wrt)


@nnx.jit
def accuracy(model, images, labels):
    return (model(images).argmax(-1) == labels).mean()


def with_lora(base, seed):
    """Return a copy of the network with LoRA of rank 1 around its two linear layers."""
    model, rngs = nnx.clone(base), nnx.Rngs(seed)
    model.hidden = nnx.LoRA(288, 1, 96, base_module=model.hidden, rngs=rngs)
    model.head = nnx.LoRA(96, 1, 5, base_module=model.head, rngs=rngs)
    return model


def size_of_delta(base, model):
    """Return the kilobytes of the file of what was trained, which make the base the trained network."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "delta.safetensors"
        export_delta(model, file)
        assert jnp.allclose(apply_delta(base, file).head.kernel[...], model.head.effective_kernel())
        return file.stat().st_size / 1000


def main(num_epochs=20, seeds=(0, 1, 2)):
    flat, labels = load_digits(return_X_y=True)
    images, labels = jnp.asarray(flat.reshape(-1, 8, 8, 1) / 16, jnp.float32), jnp.asarray(labels)
    known, new = np.flatnonzero(labels < 5), np.flatnonzero(labels > 4)
    known_images, known_labels = images[known], labels[known]
    train_images, train_labels = images[new[:700]], labels[new[:700]] - 5
    test_images, test_labels = images[new[700:]], labels[new[700:]] - 5
    # One optimiser for all seeds: the programs are then compiled once.
    slow, fast = (
        optax.adam(optax.cosine_decay_schedule(rate, num_epochs * 700 // BATCH_SIZE)) for rate in (1e-3, 1e-2)
    )
    accuracies: dict[str, list[float]] = {}
    trained: dict[str, int] = {}
    for seed in seeds:
        base = Net(nnx.Rngs(seed))
        train(base, slow, known_images[:700], known_labels[:700], num_epochs, seed)
        sparse = partial(convert, base, offset="frozen", density=0.005)
        by_fisher = sparse(method="fisher", batch=(train_images, train_labels))
        models = {
            "all parameters": (nnx.clone(base), slow, nnx.Param),
            "0.5 %, at random": (sparse(key=jax.random.key(seed)), fast, nnx.Param),
            "0.5 %, by Fisher information": (by_fisher, fast, nnx.Param),
            "LoRA of rank 1": (with_lora(base, seed), fast, nnx.LoRAParam),
        }
        for name, (model, adam, wrt) in models.items():
            trained[name] = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, wrt)))
            train(model, adam, train_images, train_labels, num_epochs, seed, wrt)
            accuracies.setdefault(name, []).append(float(accuracy(model, test_images, test_labels)))
        print(f"seed {seed}: what the sparse network has learnt is {size_of_delta(base, by_fisher):.1f} kB", flush=True)
    for name, of_seeds in accuracies.items():
        print(
            f"{name:28} {trained[name]:7,} trained  {np.mean(of_seeds):6.1%} ± {np.std(of_seeds):.1%} of the new digits"
        )
    return {name: np.mean(of_seeds) for name, of_seeds in accuracies.items()}


if __name__ == "__main__":
    main()
