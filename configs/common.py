"""The protocol of the paper, on which every config here builds: :mod:`dctps_jax.defaults`."""

from dctps_jax.defaults import get_config

__all__ = ["get_config"]
