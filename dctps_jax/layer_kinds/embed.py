"""``K = α·D + S`` in place of ``nnx.Embed``."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn import dtypes

from dctps_jax.arguments import check_dtype, check_inputs, check_size, words
from dctps_jax.errors import UserError
from dctps_jax.kernels import KernelLayer
from dctps_jax.offsets import Offset
from dctps_jax.ops.geometry import Geometry
from dctps_jax.stacks import check_one_layer

DEFAULT_EMBED_INIT = nnx.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)  # the default of nnx.Embed


class DCTpSEmbed(KernelLayer):
    """Look up rows of ``K = α·D + S``; a drop-in for ``nnx.Embed``.

    It has all arguments of ``nnx.Embed`` under their names. ``offset``, ``alpha_init``, ``alpha_trainable``, ``mask``
    and ``support`` are as in :class:`~dctps_jax.DCTpSConv`. ``embedding_init`` initialises S if there is no offset. The
    kernel has shape ``(num_embeddings, features)``.

    Every form computes with the whole kernel: ``method`` is "autodiff".
    """

    def __init__(
        self,
        num_embeddings: int,
        features: int,
        *,
        mask: jax.Array | None = None,
        support: jax.Array | np.ndarray | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        embedding_init: nnx.Initializer = DEFAULT_EMBED_INIT,
        promote_dtype: Any = dtypes.promote_dtype,
        offset: str | Offset | None = "dct",
        alpha_init: float = 1.0,
        alpha_trainable: bool = True,
        rngs: nnx.Rngs,
        embedding_metadata: Mapping[str, Any] = MappingProxyType({}),
    ):
        check_size(num_embeddings=num_embeddings, features=features)
        check_dtype("param_dtype", param_dtype)
        self.num_embeddings = num_embeddings
        self.features = features
        self.dtype = dtype or jnp.dtype(param_dtype)
        self.param_dtype = param_dtype
        self.promote_dtype = promote_dtype
        self._init_parameters(
            (num_embeddings, features),
            offset=offset,
            alpha_init=alpha_init,
            alpha_trainable=alpha_trainable,
            mask=mask,
            support=support,
            use_bias=False,
            param_dtype=param_dtype,
            kernel_init=embedding_init,
            bias_init=nnx.initializers.zeros,
            rngs=rngs,
            kernel_metadata=embedding_metadata,
            bias_metadata={},
        )
        self.method = "autodiff"

    @property
    def embedding(self) -> jax.Array:
        """K, under the name that ``nnx.Embed`` gives it."""
        return self.effective_kernel()

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """Return the rows of K at ``inputs``, integers of any shape: ``[*inputs.shape, features]``."""
        check_one_layer(self)
        if not hasattr(inputs, "dtype") or not jnp.issubdtype(inputs.dtype, jnp.integer):
            raise UserError(f"the inputs of an embedding are {words(inputs)}; they must be an array of integers")
        (kernel,) = self.promote_dtype((self.effective_kernel(),), dtype=self.dtype, inexact=False)
        if self.num_embeddings == 1:
            return jnp.broadcast_to(kernel, (*inputs.shape, self.features))
        if out_sharding is not None:  # jnp.take does not know it
            rows: Any = jax.sharding.auto_axes(_rows, out_sharding=out_sharding)
            return rows(kernel, inputs)
        return _rows(kernel, inputs)

    def attend(self, query: jax.Array, out_sharding: Any = None) -> jax.Array:
        """Return ``query @ K.T`` for ``query [..., features]``."""
        check_one_layer(self)
        check_inputs(query, self.features)
        if out_sharding is not None or self.promote_dtype is not dtypes.promote_dtype:
            query, kernel = self.promote_dtype((query, self.effective_kernel()), dtype=self.dtype)
            return jnp.dot(query, kernel.T, out_sharding=out_sharding)
        query, _ = self.promote_dtype((query, self.kernel[...]), dtype=self.dtype)
        return self._apply(query, Geometry((self.features, self.num_embeddings)))

    def _apply(self, inputs: jax.Array, geometry: Geometry) -> jax.Array:
        """Return ``inputs @ K.T``, the only product of an embedding."""
        return jnp.dot(inputs, self.effective_kernel().astype(inputs.dtype).T)


def _rows(kernel: jax.Array, inputs: jax.Array) -> jax.Array:
    return jnp.take(kernel, inputs, axis=0)
