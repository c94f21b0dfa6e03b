"""The DCT offset by itself: its matrix and its kernels. :mod:`dctps_jax.offsets.dct` describes them."""

from dctps_jax.offsets.dct import conv_kernel, dct_matrix, offset_kernel

__all__ = ["conv_kernel", "dct_matrix", "offset_kernel"]
