"""Layers with ``K = α·D + S`` besides convolutions and linear layers, and the NNX layers that they replace."""

from typing import Any

from flax import nnx

from dctps_jax.layer_kinds import conv_transpose, einsum, linear_general
from dctps_jax.layer_kinds.conv_transpose import DCTpSConvTranspose
from dctps_jax.layer_kinds.einsum import DCTpSEinsum
from dctps_jax.layer_kinds.embed import DCTpSEmbed
from dctps_jax.layer_kinds.linear_general import DCTpSLinearGeneral
from dctps_jax.layers import DCTpSConv, DCTpSLinear

__all__ = [
    "COUNTERPARTS",
    "DCTpSConvTranspose",
    "DCTpSEinsum",
    "DCTpSEmbed",
    "DCTpSLinearGeneral",
    "has_counterpart",
    "kernel_variable",
    "shapes_of",
]

# Layer of NNX → the layer that replaces it.
COUNTERPARTS: dict[type[nnx.Module], Any] = {
    nnx.Conv: DCTpSConv,
    nnx.Linear: DCTpSLinear,
    nnx.LinearGeneral: DCTpSLinearGeneral,
    nnx.Einsum: DCTpSEinsum,
    nnx.ConvTranspose: DCTpSConvTranspose,
    nnx.Embed: DCTpSEmbed,
}


def has_counterpart(layer: Any) -> bool:
    """Return whether a layer of NNX has a counterpart here. Subclasses have none: they may compute something else."""
    if type(layer) is nnx.Einsum:
        return einsum.contraction_of(layer.einsum_str, layer.kernel_shape) is not None
    return type(layer) in COUNTERPARTS


def shapes_of(layer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shape of the kernel of a layer's counterpart, and that of its own kernel."""
    match layer:
        case nnx.LinearGeneral():
            contraction = linear_general.contraction_of(layer)
            return contraction.kernel_shape, contraction.shape
        case nnx.Einsum():
            contraction = einsum.contraction_of(layer.einsum_str, layer.kernel_shape)
            assert contraction is not None
            return contraction.kernel_shape, contraction.shape
        case nnx.ConvTranspose():
            return conv_transpose.kernel_shape_of(layer), layer.kernel_shape
        case nnx.Conv():
            shape = (*layer.kernel_size, layer.in_features // layer.feature_group_count, layer.out_features)
        case nnx.Embed():
            shape = (layer.num_embeddings, layer.features)
        case _:
            shape = (layer.in_features, layer.out_features)
    return shape, shape


def kernel_variable(layer: Any) -> nnx.Variable:
    """Return the kernel variable of a layer; ``nnx.Embed`` calls it the embedding."""
    return layer.embedding if isinstance(layer, nnx.Embed) else layer.kernel
