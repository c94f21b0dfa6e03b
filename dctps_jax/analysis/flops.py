"""Theoretical floating point operations of a network's prunable layers: executed dense, and of what is trained alone."""

import math
from collections.abc import Mapping

from flax import nnx

from dctps_jax.analysis.works import works_of


def flops_account(model: nnx.Module, inputs: tuple[int, ...], counts: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Return the operations of inference on ``inputs [batch, …]`` and of a training step on them, each by kind.

    A multiply-add counts as two. ``dense``: every layer by its whole kernel. ``sparse``: by its ``counts`` trained weights
    alone. ``offset``: what α·D adds to the sparse operations at each output position, the fewer of a product with D and a fast
    cosine transform of length n = max(rows, columns of D), at ``2 n log2 n`` (Lee 1984). A training step takes three passes, forward, to the inputs
    and to the weights; α's gradient, an inner product, is not counted, nor are BatchNorm, activations and the optimiser.
    """
    dense = sparse = offset = 0
    for path, work, _ in works_of(model, inputs):
        rows = math.prod(work.geometry.kernel_shape[:-1])
        columns = work.geometry.kernel_shape[-1]
        dense += 2 * work.output_positions * rows * columns
        sparse += 2 * work.output_positions * counts[path]
        if work.offset:
            fewest = min(2 * rows * columns, transform_flops(max(rows, columns)))
            offset += round(work.output_positions * fewest)
    return {
        "inference": {"dense": dense, "sparse": sparse, "offset": offset},
        "training_step": {"dense": 3 * dense, "sparse": 3 * sparse, "offset": 2 * offset},
    }


def transform_flops(length: int) -> float:
    """Return the operations of a fast cosine transform."""
    return 2 * length * math.log2(length) if length > 1 else 0.0
