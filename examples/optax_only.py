"""DCT plus Sparse in plain JAX and optax, with 5 % of the weights of two layers: ``python examples/optax_only.py``."""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from dctps_jax import sparse_optimizer
from dctps_jax.dct import offset_kernel
from dctps_jax.pruning import allocate, random_masks

SHAPES = {"hidden": (64, 128), "output": (128, 10)}
masks = random_masks(jax.random.key(0), SHAPES, allocate(SHAPES, 0.05, "epl"))
optimizer = sparse_optimizer(optax.adam(0.01), {"alpha": None, "sparse": masks})


def logits_of(params, images):
    kernels = {name: params["alpha"][name] * offset_kernel(SHAPES[name]) + params["sparse"][name] for name in SHAPES}
    return jax.nn.relu(images @ kernels["hidden"]) @ kernels["output"]


@jax.jit
def step(params, state, images, labels):
    def loss_of(params):
        return optax.softmax_cross_entropy_with_integer_labels(logits_of(params, images), labels).mean()

    updates, state = optimizer.update(jax.grad(loss_of)(params), state, params)
    return optax.apply_updates(params, updates), state


def main(num_steps=1000):
    images, labels = load_digits(return_X_y=True)
    images = jnp.asarray(images / 16, jnp.float32)
    params = {"alpha": dict.fromkeys(SHAPES, jnp.ones(())), "sparse": jax.tree.map(lambda mask: 0.0 * mask, masks)}
    state = optimizer.init(params)
    for _ in range(num_steps):
        params, state = step(params, state, images[:1500], labels[:1500])
    accuracy = (logits_of(params, images[1500:]).argmax(-1) == labels[1500:]).mean()
    print(f"{accuracy:.1%} of the digits that it has not seen")
    return params, accuracy


if __name__ == "__main__":
    main()
