"""The networks of the paper. Each is written once and passes the argument ``offset`` on to its layers."""

from dctps_jax.models.create import MODELS, RESNETS, create_model, is_fixup, kernel_shapes, network_options
from dctps_jax.models.initializers import INITIALIZERS
from dctps_jax.prunable import prunable_layers

__all__ = [
    "INITIALIZERS",
    "MODELS",
    "RESNETS",
    "create_model",
    "is_fixup",
    "kernel_shapes",
    "network_options",
    "prunable_layers",
]
