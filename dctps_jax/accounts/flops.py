"""Theoretical floating point operations of a network's prunable layers: executed dense, and of what is trained alone."""

import math
from collections.abc import Mapping

from flax import nnx

from dctps_jax.accounts.works import works_of

KINDS: tuple[str, ...] = ("dense", "sparse", "offset")


def flops_account(model: nnx.Module, inputs: tuple[int, ...], counts: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Return the operations of inference on one of ``inputs [batch, …]`` and of a training step on all, each by kind.

    A multiply-add counts as two. ``dense``: every layer by its whole kernel. ``sparse``: by its ``counts`` trained weights
    alone. ``offset``: what α·D adds to the sparse operations at each output position, the fewer of a product with D and a fast
    cosine transform of length n = max(rows, columns of D), at ``2 n log2 n`` (Lee 1984). A training step takes three passes, forward, to the inputs
    and to the weights; α's gradient, an inner product, is not counted, nor are BatchNorm, activations and the optimiser.
    """
    batch = inputs[0]
    image: dict[str, int] = dict.fromkeys(KINDS, 0)
    whole = image.copy()
    for path, work, _ in works_of(model, inputs):
        rows = math.prod(work.geometry.kernel_shape[:-1])
        columns = work.geometry.kernel_shape[-1]
        fewest = min(2 * rows * columns, transform_flops(max(rows, columns))) if work.offset else 0
        for total, positions in ((image, work.output_positions // batch), (whole, work.output_positions)):
            total["dense"] += 2 * positions * rows * columns
            total["sparse"] += 2 * positions * counts[path]
            total["offset"] += round(positions * fewest)
    passes = {"dense": 3, "sparse": 3, "offset": 2}
    return {"inference_of_an_image": image, "training_step": {kind: passes[kind] * whole[kind] for kind in KINDS}}


def transform_flops(length: int) -> float:
    """Return the operations of a fast cosine transform."""
    return 2 * length * math.log2(length) if length > 1 else 0.0
