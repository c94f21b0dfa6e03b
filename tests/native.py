"""The convolution that the others are measured by, and programs that are compiled rather than run fast."""

from functools import partial

import jax
import numpy as np
from jax import lax

from dctps_jax.ops.compiler import are_known

# Most of a small test is the compiler's time, which these options halve twice.
FAST_TO_COMPILE = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
jit_unoptimised = partial(
    jax.jit, compiler_options={name: value for name, value in FAST_TO_COMPILE.items() if are_known({name: value})}
)


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
