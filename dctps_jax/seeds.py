"""One seed, several independent streams of random numbers."""

import jax

STREAMS = ("init", "masks", "split", "order", "augment", "growth", "cutout", "erasing", "mixup")


def stream(seed: int | jax.Array, name: str) -> jax.Array:
    """Return the key of one named stream of a run: initial weights, masks, validation split, order,
    augmentation, growth of masks while training, what recipes do to a batch.

    ``seed`` is that of the run, or the key ``jax.random.key(seed)``: a program that is called with the key serves all
    seeds. Everything random is ``fold_in`` of one of these with a step, epoch or position, so that a run is a function
    of its config and seed and resuming needs no generator state.
    """
    return jax.random.fold_in(jax.random.key(seed) if isinstance(seed, int) else seed, STREAMS.index(name))
