"""Networks with K = W₀ + M⊙S, whose own trained kernels are the fixed part: which other variables are frozen."""

from collections.abc import Iterable, Mapping
from typing import Any

from flax import nnx

from dctps_jax.arguments import names_of
from dctps_jax.errors import UserError
from dctps_jax.kernels import Frozen, KernelLayer, SparseParam
from dctps_jax.prunable import replace_layers


def frozen(variable: nnx.Variable) -> Frozen:
    """Return a variable that is not trained, with the value and the metadata of a parameter."""
    return Frozen(variable.get_value(), **variable.get_metadata())


def freeze_all_but(model: nnx.Module, variables: Iterable[nnx.Variable]) -> None:
    """Freeze the parameters of ``model`` in place, except ``variables`` and the parameters of S and of LoRA."""
    kept = set(map(id, variables))
    parameters = [node for _, node in nnx.iter_graph(model) if isinstance(node, nnx.Param) and id(node) not in kept]
    replace_layers(
        model, {id(node): frozen(node) for node in parameters if not isinstance(node, SparseParam | nnx.LoRAParam)}
    )


def unfreeze(model: nnx.Module) -> None:
    """Make the frozen variables of ``model`` parameters again, in place."""
    variables = [node for _, node in nnx.iter_graph(model) if isinstance(node, Frozen)]
    replace_layers(model, {id(node): nnx.Param(node.get_value(), **node.get_metadata()) for node in variables})


def check_all_plain(layers: Mapping[str, Any]) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` where one of ``layers``, by path, is a DCT plus Sparse layer."""
    for path, layer in layers.items():
        if isinstance(layer, KernelLayer):
            raise UserError(
                f'{names_of([path])} is a {type(layer).__name__} already, and offset="frozen" starts from plain '
                "layers; give convert the network that to_plain returns"
            )
