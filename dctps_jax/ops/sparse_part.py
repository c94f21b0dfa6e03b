"""The sparse part S of a kernel as a list of trained weights.

Each weight has a position p in the kernel, an input channel c and an output channel m. With ``x_p`` the inputs shifted
to p, ``(S∗x)[m] = Σ_{i: m_i = m} v_i x_{p_i}[c_i]`` and ``∂v_i = ⟨x_{p_i}[c_i], ∂Y[m_i]⟩``. No array here has the size
of the kernel.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from dctps_jax.ops import target
from dctps_jax.ops.costs import Costs
from dctps_jax.ops.geometry import Geometry
from dctps_jax.ops.work import Work

# On a TPU, whole rows are added to an array if there are at most this many times its rows. The compiler then makes no
# array of them. But the work grows with the length of a row.
MAX_ROW_UPDATES = 4


class SparsePart(Protocol):
    """The trained weights of the layer that computes ``work``, at the positions ``support`` of its flattened kernel."""

    def __init__(self, work: Work, support: jax.Array): ...

    def kept(self, inputs: jax.Array) -> jax.Array | None:
        """Return what :meth:`convolve` and :meth:`gradients` both make of the inputs, or None if it is not kept."""
        ...

    def convolve(self, inputs: jax.Array, values: jax.Array, kept: jax.Array | None = None) -> jax.Array:
        """Return ``S∗inputs``."""
        ...

    def gradient_of_values(self, inputs: jax.Array, gradient: jax.Array) -> jax.Array:
        """Return the gradient of the values for the ``gradient`` of the outputs."""
        ...

    def gradients(
        self, inputs: jax.Array, gradient: jax.Array, values: jax.Array, kept: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Return the gradients of the inputs (``Sᵀ∗gradient``) and of the values. The strides must be 1."""
        ...

    @staticmethod
    def is_lean(work: Work) -> bool:
        """Return whether the weights need no more memory than a layer that trains all weights."""
        ...

    @staticmethod
    def product_cost(work: Work, costs: Costs) -> float:
        """Return the nanoseconds of the products with S, forward and to the inputs."""
        ...

    @staticmethod
    def gradient_cost(work: Work, costs: Costs) -> float:
        """Return the nanoseconds of the gradient of the values."""
        ...


class Weights(NamedTuple):
    """Tap (place in the kernel's window, C order), input and output channel of each trained weight, int32 ``[nnz]``."""

    tap: jax.Array
    source: jax.Array
    target: jax.Array


def weights_at(support: jax.Array, geometry: Geometry) -> Weights:
    """Return where the weights at the positions ``support`` of the flattened kernel are."""
    *_, in_features, out_features = geometry.kernel_shape
    rows, target = support // out_features, support % out_features
    group = target // (out_features // geometry.groups)
    return Weights(rows // in_features, rows % in_features + group * in_features, target)


@jax.custom_jvp
def add_at(array: jax.Array, positions: jax.Array, values: jax.Array) -> jax.Array:
    """Return ``array`` with ``values``, in its dtype, added at the ascending ``positions`` of the flattened array."""
    rows = array.reshape(-1, array.shape[-1])
    if target.platform() != "tpu" or len(positions) > MAX_ROW_UPDATES * len(rows):
        return add_numbers_at(array, positions, values)
    # Each value becomes a row that is zero elsewhere. To add single numbers, a TPU converts the whole array to a flat
    # layout, and back. For a kernel of 3×3×512×512 in bfloat16 the compiler (libtpu 0.0.42) estimates 104,000 cycles
    # for the way there. The convolution takes 79,000. The rows are rounded, not the values, which saves an operation.
    row, column = positions // array.shape[-1], positions % array.shape[-1]
    whole = jnp.where(jax.nn.one_hot(column, array.shape[-1], dtype=bool), values[:, None], 0).astype(array.dtype)
    return rows.at[row].add(whole, indices_are_sorted=True, mode="promise_in_bounds").reshape(array.shape)


@add_at.defjvp
def _add_at_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    array, positions, values = primals
    return add_at(array, positions, values), add_numbers_at(tangents[0], positions, tangents[2])


def add_numbers_at(array: jax.Array, positions: jax.Array, values: jax.Array) -> jax.Array:
    """Return the same as :func:`add_at`. Its transpose picks single numbers, which a TPU does in any layout."""
    # Indexed by row and column: if the array were flattened, the code that computes it would divide for each number.
    rows = array.reshape(-1, array.shape[-1])
    row, column = positions // array.shape[-1], positions % array.shape[-1]
    # The places are not declared unique: in a loop over blocks, shorter lists are filled up with zeros at their last
    # place.
    added = rows.at[row, column].add(values.astype(array.dtype), indices_are_sorted=True, mode="promise_in_bounds")
    return added.reshape(array.shape)
