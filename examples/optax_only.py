"""DCT plus Sparse in plain JAX and optax: a network of two layers on the digits, 5 % of its weights trained.

python examples/optax_only.py
"""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from dctps_jax.dct import offset_kernel
from dctps_jax.pruning import allocate, random_masks
from dctps_jax.pruning.transformation import keep_masked, sparse_optimizer

SHAPES = {"hidden": (64, 128), "output": (128, 10)}


def logits_of(params, images):
    kernels = {
        name: params[name]["alpha"] * offset_kernel(shape) + params[name]["sparse"] for name, shape in SHAPES.items()
    }
    return jax.nn.relu(images @ kernels["hidden"]) @ kernels["output"]


def main(num_steps=1000):
    digits = load_digits()
    images, labels = jnp.asarray(digits.data / 16, jnp.float32), jnp.asarray(digits.target)
    masks = random_masks(jax.random.key(0), SHAPES, allocate(SHAPES, 0.05, "epl"))
    masks = {name: {"alpha": None, "sparse": mask} for name, mask in masks.items()}
    params = {name: {"alpha": jnp.ones(()), "sparse": jnp.zeros(shape)} for name, shape in SHAPES.items()}
    optimizer = sparse_optimizer(optax.adam(0.01), masks)

    @jax.jit
    def step(params, state):
        def loss_fn(params):
            return optax.softmax_cross_entropy_with_integer_labels(
                logits_of(params, images[:1500]), labels[:1500]
            ).mean()

        updates, state = optimizer.update(jax.grad(loss_fn)(params), state, params)
        return optax.apply_updates(params, updates), state

    params = keep_masked(params, masks)
    state = optimizer.init(params)
    for _ in range(num_steps):
        params, state = step(params, state)
    accuracy = (logits_of(params, images[1500:]).argmax(-1) == labels[1500:]).mean()
    print(f"{accuracy:.1%} of the digits that it has not seen")
    return params, accuracy


if __name__ == "__main__":
    main()
