"""DCT plus Sparse: networks that train with 1 % down to 0.01 % of their weights, in JAX and Flax NNX."""

from dctps_jax.accounts.execution_report import execution_report
from dctps_jax.conversion import convert, to_plain
from dctps_jax.conversion_table import conversion_report
from dctps_jax.delta import apply_delta, export_delta
from dctps_jax.errors import UserError
from dctps_jax.kernels import Alpha, Frozen, FrozenAlpha, Mask, SparseParam, Support
from dctps_jax.layer_kinds import DCTpSConvTranspose, DCTpSEinsum, DCTpSEmbed, DCTpSLinearGeneral
from dctps_jax.layers import DCTpSConv, DCTpSLinear
from dctps_jax.network_file import load_network, save_network
from dctps_jax.ops.compiler import compiler_options
from dctps_jax.ops.fusion import materialized
from dctps_jax.prunable import unmasked_copy
from dctps_jax.pruning.dynamic_sparse import DynamicSparseOptimizer, dynamic_sparse
from dctps_jax.pruning.sparse_optimizer import keep_masked, sparse_optimizer

__version__ = "0.2.0.dev0"

__all__ = [
    "Alpha",
    "DCTpSConv",
    "DCTpSConvTranspose",
    "DCTpSEinsum",
    "DCTpSEmbed",
    "DCTpSLinear",
    "DCTpSLinearGeneral",
    "DynamicSparseOptimizer",
    "Frozen",
    "FrozenAlpha",
    "Mask",
    "SparseParam",
    "Support",
    "UserError",
    "__version__",
    "apply_delta",
    "compiler_options",
    "conversion_report",
    "convert",
    "dynamic_sparse",
    "execution_report",
    "export_delta",
    "keep_masked",
    "load_network",
    "materialized",
    "save_network",
    "sparse_optimizer",
    "to_plain",
    "unmasked_copy",
]
