"""Options for XLA under which these networks run fastest."""

from collections.abc import Mapping
from functools import cache

import jax
import jax.numpy as jnp

# XLA's CPU backend hands convolutions to a library that runs most of them on one core; left out of the list, they go to
# its own code, which takes all cores.
CPU: dict[str, str | bool] = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
}


@cache
def compiler_options() -> dict[str, str | bool]:
    """Return the options for ``jax.jit(function, compiler_options=…)`` on the current platform.

    They change how fast convolutions are, and their rounding. Empty on GPU and TPU, and where this version of XLA does not
    know them.
    """
    if jax.default_backend() != "cpu":
        return {}
    return CPU if are_known(CPU) else {}


def are_known(options: Mapping[str, str | bool | int]) -> bool:
    """Return whether this version of XLA has all of the options."""
    try:
        jax.jit(lambda x: x, compiler_options=dict(options))(jnp.zeros(()))
    except jax.errors.JaxRuntimeError:
        return False
    return True
