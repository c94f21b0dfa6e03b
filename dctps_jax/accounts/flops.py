"""Theoretical floating point operations of the prunable layers: of whole kernels, and of the trained weights alone."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from dctps_jax.accounts.layer_calls import calls_of
from dctps_jax.prunable import prunable_layers

# Passes of a training step: forward, to the inputs and to the weights. The offset has no weights to train.
PASSES = {"dense": 3, "sparse": 3, "offset": 2}


def flops_account(
    model: nnx.Module,
    inputs: tuple[int, ...],
    counts: Mapping[str, int],
    training_counts: Mapping[str, float] | None = None,
) -> dict[str, dict[str, int]]:
    """Return the operations of inference on one of ``inputs [batch, …]`` and of a training step on all, each by kind.

    A multiply-add counts as two. ``dense``: every layer by its whole kernel. ``sparse``: by its ``counts`` trained
    weights alone; in training by ``training_counts``, their mean over all steps, where they change. ``offset``: what
    α·D or a frozen kernel adds to the sparse operations at each output position. A product with D takes the fewest
    operations known, see :class:`dctps_jax.offsets.Offset`: each group of a grouped layer is transformed by itself.
    BatchNorm, activations, the optimiser and α's gradient, an inner product, are not counted.
    """
    batch = inputs[0]
    image = dict.fromkeys(PASSES, 0)
    whole = image.copy()
    layers = prunable_layers(model)
    for call in calls_of(model, jax.ShapeDtypeStruct(inputs, jnp.float32)):
        layer, rows, columns = layers[call.path], math.prod(call.kernel_shape[:-1]), call.kernel_shape[-1]
        if layer.base is not None:
            of_offset = 2.0 * rows * columns
        elif layer.offset is not None:
            of_offset = min(2.0 * rows * columns, call.groups * layer.offset.operations(rows, columns))
        else:
            of_offset = 0.0
        in_training = (training_counts or counts)[call.path]
        for total, positions, count in (
            (image, call.output_positions // batch, counts[call.path]),
            (whole, call.output_positions, in_training),
        ):
            total["dense"] += 2 * positions * rows * columns
            total["sparse"] += round(2 * positions * count)
            total["offset"] += round(positions * of_offset)
    return {"inference_of_an_image": image, "training_step": {kind: PASSES[kind] * whole[kind] for kind in PASSES}}
