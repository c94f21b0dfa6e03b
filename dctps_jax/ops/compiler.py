"""Options for XLA under which these networks run fastest."""

from collections.abc import Mapping
from functools import cache

import jax
import jax.numpy as jnp

from dctps_jax.ops import target

# The XLA of JAX 0.10.2 gives convolutions on a CPU to the library YNNPACK, which runs most of them on one core. This
# list leaves convolutions out, so that XLA's own code computes them, on all cores. `benchmarks/layers.py` and
# `train_step.py` compile with these options; tests/ops/test_compiler.py checks that XLA knows them.
CPU: dict[str, str | bool] = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
}


def compiler_options(platform: str | None = None) -> dict[str, str | bool]:
    """Return the options for ``jax.jit(function, compiler_options=…)`` on ``platform``, by default this process's.

    They change the speed and the rounding of convolutions. On GPU and TPU, and if this version of XLA does not know
    them, they are empty.
    """
    return CPU if (platform or target.platform()) == "cpu" and are_known(CPU) else {}


def are_known(options: Mapping[str, str | bool | int]) -> bool:
    """Return whether this version of XLA has all of the options."""
    return _are_known(tuple(options.items()))


@cache
def _are_known(options: tuple[tuple[str, str | bool | int], ...]) -> bool:
    try:
        jax.jit(lambda x: x, compiler_options=dict(options))(jnp.zeros(()))
    except jax.errors.JaxRuntimeError:
        return False
    return True
