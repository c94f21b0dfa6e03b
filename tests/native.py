"""The convolution that the others are measured by, and programs that are compiled rather than run fast."""

from functools import partial

import jax
import numpy as np
from jax import lax

from dctps_jax.ops.compiler import are_known


def known(options):
    """Return the options that this version of XLA has."""
    return {name: value for name, value in options.items() if are_known({name: value})}


# Most of a small test is the compiler's time. conftest.py gives whole processes the same options where XLA knows them.
FAST_TO_COMPILE = known({"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False})
jit_unoptimised = partial(jax.jit, compiler_options=FAST_TO_COMPILE)
# XLA's own values of the options of conftest.py: the programs that users run. For double precision, whose convolutions
# are XLA's own loops and ten times slower unoptimised, and for rounding as users have it.
XLA_DEFAULTS = known({"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True})
jit_optimised = partial(jax.jit, compiler_options=XLA_DEFAULTS)


def native(inputs, kernel, geometry):
    """The convolution of a geometry by ``lax`` alone."""
    if not geometry.size:
        return inputs @ kernel
    space = "DHW"[3 - len(geometry.size) :]
    return lax.conv_general_dilated(
        inputs,
        kernel,
        geometry.strides,
        geometry.pads,
        feature_group_count=geometry.groups,
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
    )


def normal(seed, *shape):
    """Normal numbers in float64."""
    return np.random.default_rng(seed).normal(size=shape)
