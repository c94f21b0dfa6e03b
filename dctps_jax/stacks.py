"""Stacks: layers of one shape whose variables ``nnx.vmap`` has joined, so that one module holds many of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from dctps_jax.errors import UserError


def of_each(stack: tuple[int, ...], function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Return a function that applies ``function``, which is written for one layer, to every layer of a stack."""
    for _ in stack:
        function = jax.vmap(function)
    return function


def check_one_layer(layer: Any) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` for a stack, and for a layer with only some variables stacked."""
    if layer.stack:
        raise UserError(
            f"the layer holds {math.prod(layer.stack)} layers that nnx.vmap has stacked; call them in nnx.scan or "
            "nnx.vmap"
        )
    for name, shape in shapes_of_variables(layer).items():
        found = getattr(layer, name).get_value().shape
        if found != shape:
            kind = type(getattr(layer, name)).__name__
            raise UserError(
                f"the layer's {name} has shape {found} where one layer has {shape}; in the nnx.StateAxes of nnx.scan "
                f"and nnx.vmap, give {kind} the same axis as SparseParam"
            )


def shapes_of_variables(layer: Any) -> dict[str, tuple[int, ...]]:
    """Return by attribute the shape of each variable besides the kernel in one layer, without the axes of a stack."""
    shapes = {
        "mask": layer.kernel_shape,
        "support": layer.kernel.get_value().shape[len(layer.stack) :],
        "alpha": (),
        "bias": layer.bias_shape,
        "base": layer.kernel_shape,
    }
    return {name: shape for name, shape in shapes.items() if getattr(layer, name) is not None}


def check_stack(path: str, stack: Sequence[int], shapes: Mapping[str, tuple[Sequence[int], Sequence[int]]]) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` unless all variables of a stack have its axes before their own.

    ``shapes`` has for each variable its shape and its shape in one layer.
    """
    for name, (found, own) in shapes.items():
        if tuple(found) != (*stack, *own):
            raise UserError(
                f"{path or 'the layer'} has {name} of shape {tuple(found)} where one layer has {tuple(own)}; layers "
                "that nnx.vmap has stacked can be pruned if the axis of the layers is the first axis of all their "
                "variables (axis 0 in in_axes, out_axes and nnx.StateAxes)"
            )


def check_variables(path: str, layer: Any) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` unless all variables of a layer have the axes of its stack first."""
    kernel = layer.kernel.get_value().shape  # an abstract array has no items
    if kernel:  # a kernel that is handed to the network later is a scalar until then
        own = layer.kernel_shape if layer.support is None else kernel[len(layer.stack) :]
        found = {
            name: (getattr(layer, name).get_value().shape, shape) for name, shape in shapes_of_variables(layer).items()
        }
        check_stack(path, layer.stack, {"kernel": (kernel, own), **found})
