"""Sparse fine-tuning: a network that knows the digits 0 to 4 learns 5 to 9 with 0.5 % of its weights.

Beside it all parameters are fine-tuned, and LoRA of about the same size. What the sparse one has learnt is a file of a
few kilobytes.

python examples/finetune_digits.py
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from dctps_jax import apply_delta, convert, export_delta


class Net(nnx.Module):
    def __init__(self, rngs):
        self.convs = nnx.List(
            [
                nnx.Conv(*sizes, (3, 3), strides=stride, rngs=rngs)
                for *sizes, stride in ((1, 32, 1), (32, 64, 2), (64, 72, 2))
            ]
        )
        self.hidden = nnx.Linear(288, 96, rngs=rngs)
        self.head = nnx.Linear(96, 5, rngs=rngs)

    def __call__(self, x):
        for conv in self.convs:
            x = nnx.relu(conv(x))
        return self.head(nnx.relu(self.hidden(x.reshape(len(x), -1))))


def train(model, images, labels, num_epochs, learning_rate, seed, wrt=nnx.Param, batch_size=50):
    steps = num_epochs * (len(images) // batch_size)
    optimizer = nnx.Optimizer(model, optax.adam(optax.cosine_decay_schedule(learning_rate, steps)), wrt=wrt)

    @nnx.jit
    def step(model, optimizer, images, labels):
        def loss_fn(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

        optimizer.update(model, nnx.grad(loss_fn, argnums=nnx.DiffState(0, wrt))(model))

    rng = np.random.default_rng(seed)
    for _ in range(num_epochs):
        order = rng.permutation(len(images))[: len(images) // batch_size * batch_size]
        for batch in order.reshape(-1, batch_size):
            step(model, optimizer, images[batch], labels[batch])


@nnx.jit
def accuracy(model, images, labels):
    return (model(images).argmax(-1) == labels).mean()


def with_lora(base, seed):
    """Return a copy of the network with LoRA of rank 1 around its two linear layers."""
    model, rngs = nnx.clone(base), nnx.Rngs(seed)
    model.hidden = nnx.LoRA(288, 1, 96, base_module=model.hidden, rngs=rngs)
    model.head = nnx.LoRA(96, 1, 5, base_module=model.head, rngs=rngs)
    return model


def main(num_epochs=20, seeds=(0, 1, 2)):
    flat, labels = load_digits(return_X_y=True)
    images, labels = jnp.asarray(flat.reshape(-1, 8, 8, 1) / 16, jnp.float32), jnp.asarray(labels)
    is_train = np.arange(len(labels)) < 1400
    first, second, held_out = (
        np.flatnonzero(which) for which in (is_train & (labels < 5), is_train & (labels > 4), ~is_train & (labels > 4))
    )
    accuracies: dict[str, list[float]] = {}
    trained: dict[str, int] = {}
    for seed in seeds:
        base = Net(nnx.Rngs(seed))
        train(base, images[first], labels[first], num_epochs, 2e-3, seed)
        batch = images[second], labels[second] - 5
        sparse = {"offset": "frozen", "density": 0.005}
        models = {
            "all parameters": (nnx.clone(base), nnx.Param, 1e-3),
            "0.5 %, at random": (convert(base, key=jax.random.key(seed), **sparse), nnx.Param, 1e-2),
            "0.5 %, by Fisher information": (convert(base, method="fisher", batch=batch, **sparse), nnx.Param, 1e-2),
            "LoRA of rank 1": (with_lora(base, seed), nnx.LoRAParam, 1e-2),
        }
        for name, (model, wrt, learning_rate) in models.items():
            trained[name] = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, wrt)))
            train(model, *batch, num_epochs, learning_rate, seed, wrt)
            found = float(accuracy(model, images[held_out], labels[held_out] - 5))
            accuracies.setdefault(name, []).append(found)
            if name.startswith("0.5 %"):
                with tempfile.TemporaryDirectory() as folder:
                    file = Path(folder) / "delta.safetensors"
                    export_delta(model, file)
                    size = file.stat().st_size
                    assert float(accuracy(apply_delta(base, file), images[held_out], labels[held_out] - 5)) == found
    for name, of_seeds in accuracies.items():
        print(
            f"{name:28} {trained[name]:7,} trained  {np.mean(of_seeds):6.1%} ± {np.std(of_seeds):.1%} of the new digits"
        )
    print(f"the file of a sparse one: {size / 1000:.1f} kB")
    return {name: np.mean(of_seeds) for name, of_seeds in accuracies.items()}


if __name__ == "__main__":
    main()
