"""Products of inputs with a tensor of weights, as products with a matrix: inputs × outputs."""

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dctps_jax.errors import UserError
from dctps_jax.kernels import KernelLayer
from dctps_jax.ops.geometry import Geometry
from dctps_jax.partitioning import unwrapped


class Contraction(NamedTuple):
    """The axes of a tensor of weights, grouped by their role in the product with the inputs.

    ``inputs`` are summed over, ``outputs`` are new axes of the outputs, and ``batch`` axes are in both: each of their
    items is a product of its own. Without batch axes the matrix has shape ``(inputs, outputs)``. With them it is the
    kernel of a grouped convolution of one position, ``(1, inputs, batch · outputs)``.
    """

    shape: tuple[int, ...]
    batch: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def sizes(self, axes: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.shape[axis] for axis in axes)

    @property
    def groups(self) -> int:
        return math.prod(self.sizes(self.batch))

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """The shape of the matrix."""
        rows, columns = math.prod(self.sizes(self.inputs)), math.prod(self.sizes((*self.batch, *self.outputs)))
        return (1, rows, columns) if self.groups > 1 else (rows, columns)

    def matrix(self, tensor: jax.Array) -> jax.Array:
        """Return a tensor of weights as a matrix."""
        return jnp.transpose(tensor, (*self.inputs, *self.batch, *self.outputs)).reshape(self.kernel_shape)

    def tensor(self, matrix: jax.Array) -> jax.Array:
        """Return a matrix as the tensor of weights."""
        order = (*self.inputs, *self.batch, *self.outputs)
        return jnp.transpose(matrix.reshape(self.sizes(order)), np.argsort(order).tolist())

    def initializer(self, init: nnx.Initializer, shape: Sequence[int]) -> nnx.Initializer:
        """Return an initialiser of the matrix: it calls ``init`` for ``shape``, the shape of the tensor."""
        if init is nnx.initializers.zeros:
            return init  # the kernel of a compact layer is then never made
        # The metadata of the tensor are left out: its axes are not the axes of the matrix.
        return lambda key, _, dtype: self.matrix(unwrapped(init(key, tuple(shape), dtype))[0].reshape(self.shape))


def are_divided(inputs: jax.Array, axes: Iterable[int]) -> bool:
    """Return whether ``axes`` are divided among the devices of a mesh with explicit axes."""
    spec = jax.typeof(inputs).sharding.spec
    return any(axis < len(spec) and spec[axis] is not None for axis in axes)


class TensorLayer(KernelLayer):
    """A layer with a tensor of weights. It keeps the tensor as a matrix, and computes as a linear layer does."""

    contraction: Contraction
    precision: Any

    def plain_kernel(self, kernel: jax.Array) -> jax.Array:
        return self.contraction.tensor(kernel)

    def own_kernel(self, kernel: jax.Array) -> jax.Array:
        return self.contraction.matrix(kernel)

    def _product(
        self,
        inputs: jax.Array,
        input_labels: Sequence[Hashable],
        kernel_labels: Sequence[Hashable],
        output_labels: Sequence[Hashable],
    ) -> jax.Array:
        """Return the product of inputs and kernel; their axes are labelled as in an einsum.

        Raises :class:`~dctps_jax.errors.UserError` for inputs of other sizes: the matrix might fit them by accident.
        """
        self._check_sizes(inputs, input_labels, kernel_labels)
        batch, contracted, new = (
            [kernel_labels[axis] for axis in axes]
            for axes in (self.contraction.batch, self.contraction.inputs, self.contraction.outputs)
        )
        alone = [label for label in input_labels if label not in kernel_labels]
        free = [label for label in alone if label in output_labels]
        # Axes that only the inputs have are summed over first: the product is linear.
        inputs = inputs.sum([axis for axis, label in enumerate(input_labels) if label in alone and label not in free])
        labels = [label for label in input_labels if label in kernel_labels or label in free]
        inputs = jnp.transpose(inputs, [labels.index(label) for label in (*free, *batch, *contracted)])
        free_sizes = inputs.shape[: len(free)]
        groups, (rows, columns) = self.contraction.groups, self.kernel_shape[-2:]
        # Features and other axes are merged and divided in two steps: on a mesh with explicit axes JAX refuses both at
        # once.
        inputs = inputs.reshape(*free_sizes, groups * rows)
        if groups > 1:
            geometry = Geometry(self.kernel_shape, (1,), ((0, 0),), groups, self.precision)
            outputs = self._apply(inputs.reshape(math.prod(free_sizes), 1, groups * rows), geometry)
        else:
            outputs = self._multiply(inputs, self.precision)
        sizes = self.contraction.sizes((*self.contraction.batch, *self.contraction.outputs))
        outputs = outputs.reshape(*free_sizes, columns).reshape(*free_sizes, *sizes)
        made = [*free, *batch, *new]
        return jnp.transpose(outputs, [made.index(label) for label in output_labels])

    def _check_sizes(
        self, inputs: jax.Array, input_labels: Sequence[Hashable], kernel_labels: Sequence[Hashable]
    ) -> None:
        sizes_of_kernel = dict(zip(kernel_labels, self.contraction.shape, strict=True))
        for axis, label in enumerate(input_labels):
            if sizes_of_kernel.get(label, inputs.shape[axis]) != inputs.shape[axis]:
                raise UserError(
                    f"axis {axis} of the inputs, of shape {inputs.shape}, has size {inputs.shape[axis]}; for a kernel "
                    f"of shape {self.contraction.shape} it must be {sizes_of_kernel[label]}"
                )
