"""What each prunable layer of a network has to compute for inputs of a shape, by an abstract call."""

import functools
from typing import Any, NamedTuple

import jax
from flax import nnx

from dctps_jax.kernels import work_of
from dctps_jax.models.blocks import Running
from dctps_jax.ops.geometry import Geometry
from dctps_jax.ops.work import Work
from dctps_jax.prunable import prunable_layers

# The functions that a layer calls when only JAX's own operation can compute it.
NATIVE = ("_native_convolution", "_native_product", "_native_einsum")


class Call(NamedTuple):
    """A use of a layer: its kernel, the positions of the outputs of the whole batch, and what a method has to compute.

    Each of the ``groups`` of output channels sees inputs of its own. ``dtype`` is the dtype of the inputs. ``work`` and
    ``dtype`` are None if the layer uses JAX's own operation. The ``nnz`` of a layer that is not compact is the size of
    its kernel.
    """

    path: str
    kernel_shape: tuple[int, ...]
    output_positions: int
    groups: int
    work: Work | None = None
    dtype: Any = None


def calls_of(model: nnx.Module, *inputs: Any, **options: Any) -> list[Call]:
    """Return the uses of the prunable layers in their order, in a call of ``model`` in evaluation mode.

    ``inputs`` are arrays, or ``jax.ShapeDtypeStruct`` objects: nothing is computed. The layers of a stack, which
    ``nnx.scan`` applies one after another, are one use, with the shapes of one layer.
    """
    calls: list[Call] = []
    copy = nnx.clone(model)
    copy.eval()
    if isinstance(getattr(copy, "running", None), Running):
        setattr(copy, "running", Running(min_loop=0))  # noqa: B010 (each layer is to run under its own name)
    for path, layer in prunable_layers(copy).items():
        layer.__class__ = _recording(type(layer))
        # A static attribute, which nnx.scan passes on. It is compared by the identity of the list.
        setattr(layer, "recording", (path, calls.append))  # noqa: B010 (the type of layers does not know it)
    graph, state = nnx.split(copy)

    def call(state: Any, *inputs: Any) -> Any:
        traced: Any = nnx.merge(graph, state)  # a network may change its variables where it is traced only
        return traced(*inputs, **options)

    jax.eval_shape(call, state, *inputs)
    return calls


@functools.cache
def _recording(kind: type) -> type:
    """Return a kind of layers that computes the same, and records each use by the function in ``recording``."""

    def apply(self: Any, inputs: jax.Array, geometry: Geometry) -> jax.Array:
        (path, record), work = self.recording, work_of(self, inputs, geometry)
        record(Call(path, geometry.kernel_shape, work.output_positions, geometry.groups, work, inputs.dtype))
        return kind._apply(self, inputs, geometry)

    def native(name: str) -> Any:
        def apply_native(self: Any, *arguments: Any) -> jax.Array:
            (path, record), outputs = self.recording, getattr(kind, name)(self, *arguments)
            record(Call(path, self.kernel_shape, outputs.size // self.kernel_shape[-1], _groups_of(self)))
            return outputs

        return apply_native

    natives = {name: native(name) for name in NATIVE if hasattr(kind, name)}
    return type(kind)(kind.__name__, (kind,), {"_apply": apply, **natives})


def _groups_of(layer: Any) -> int:
    contraction = getattr(layer, "contraction", None)
    return getattr(layer, "feature_group_count", 1) if contraction is None else contraction.groups
