"""Convert one layer: a layer of NNX into a DCT plus Sparse layer, and back."""

import inspect
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dctps_jax.arguments import names_of
from dctps_jax.errors import UserError
from dctps_jax.kernels import KernelLayer
from dctps_jax.layer_kinds import COUNTERPARTS, DCTpSEinsum, kernel_variable, shapes_of
from dctps_jax.partitioning import add_metadata, metadata_of_values, placed_like
from dctps_jax.stacks import check_stack, of_each
from dctps_jax.supports import values_at


def kernel_shape_of(layer: Any) -> tuple[int, ...]:
    """Return the kernel shape of the counterpart of one layer."""
    return layer.kernel_shape if isinstance(layer, KernelLayer) else shapes_of(layer)[0]


def stack_of(path: str, layer: Any) -> tuple[int, ...]:
    """Return the sizes of the axes in which ``nnx.vmap`` has stacked a layer, ``()`` for one layer.

    A layer that cannot be converted raises :class:`~dctps_jax.errors.UserError`.
    """
    if isinstance(layer, KernelLayer):
        return layer.stack
    if isinstance(layer, nnx.Conv | nnx.ConvTranspose) and layer.mask is not None:
        raise UserError(f"{names_of([path])} has a mask of its own; exclude it, or build it without")
    own = shapes_of(layer)[1]
    found = kernel_variable(layer).get_value().shape
    stack = found[: len(found) - len(own)]
    shapes: dict[str, tuple[Any, Any]] = {"kernel": (found, own)}
    if isinstance(layer, nnx.Conv | nnx.Linear) and layer.bias is not None:
        shapes["bias"] = layer.bias.get_value().shape, (layer.out_features,)
    check_stack(path, stack, shapes)
    return stack


def converted_layer(
    layer: Any, stack: tuple[int, ...], support: np.ndarray | None, is_frozen: bool, **settings: Any
) -> KernelLayer:
    """Return the DCT plus Sparse layer for a layer of NNX, compact if there is a support."""
    layer_type = COUNTERPARTS[type(layer)]
    # The type of the kernel itself: the network may have been cast since the layer was made.
    same = _same_arguments(layer, layer_type) | {"param_dtype": kernel_variable(layer).get_value().dtype}
    of_one_layer = None if support is None else support[(0,) * len(stack)]
    new = layer_type(**same, **settings, support=of_one_layer, **_zeros_for(type(layer)), rngs=nnx.Rngs(0))
    for variable in (new.kernel, new.support, new.alpha):
        if stack and variable is not None:
            variable.set_value(jnp.broadcast_to(variable[...], (*stack, *variable[...].shape)))
    metadata = kernel_variable(layer).get_metadata()
    whole = of_each(stack, new.own_kernel)(kernel_variable(layer)[...])
    if new.support is not None:
        new.support.set_value(jnp.asarray(support, jnp.int32))
    if support is not None or isinstance(layer, nnx.LinearGeneral | nnx.Einsum):  # the axes are other ones
        metadata = metadata_of_values(metadata, len(stack))
    if is_frozen:
        new.set_base(whole)
    elif new.offset is None:
        new.kernel.set_value(whole if new.support is None else values_at(whole, new.support[...]))
    if support is None:
        new.kernel.set_value(placed_like(new.kernel[...], whole))
    add_metadata(new.kernel, metadata)
    if new.bias is not None and layer.bias is not None:
        new.bias = nnx.data(layer.bias)  # the variable itself, which other modules may hold, too
    return new


def plain_layer(layer: KernelLayer) -> Any:
    layer_type: Any = next(plain for plain, own in COUNTERPARTS.items() if isinstance(layer, own))
    arguments = _same_arguments(layer, layer_type)
    if isinstance(layer, DCTpSEinsum):
        arguments["kernel_shape"] = layer.contraction.shape
    plain: Any = layer_type(**arguments, **_zeros_for(layer_type), rngs=nnx.Rngs(0))
    kernel = kernel_variable(plain)
    kernel.set_value(of_each(layer.stack, layer.plain_kernel)(layer.effective_kernel()))
    add_metadata(kernel, layer.kernel.get_metadata())
    if layer.bias is not None:
        plain.bias = nnx.data(layer.bias)  # the variable itself, which other modules may hold, too
    return plain


def _zeros_for(layer_type: type) -> dict[str, Any]:
    """Return the argument of a layer that starts its kernel, which is set afterwards, at zero."""
    return {"embedding_init" if layer_type is nnx.Embed else "kernel_init": nnx.initializers.zeros}


def _same_arguments(layer: Any, layer_type: type) -> dict[str, Any]:
    """Return every argument of ``layer_type`` that a layer keeps as an attribute of its name, but for its arrays."""
    parameters = inspect.signature(layer_type.__init__).parameters
    names = parameters.keys() & vars(layer).keys() - {"mask", "kernel_init", "bias_init"}
    return {name: getattr(layer, name) for name in names}
