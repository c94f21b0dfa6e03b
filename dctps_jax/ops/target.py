"""The platform that programs are traced for: the one that :data:`tracing_for` names, by default that of this process.

All that depends on the platform asks here: ways of computing, costs, compiler options, the type that "auto" stands for.
A CPU can so trace and compile the program that a TPU would compile for itself.
"""

import re
from typing import Any

import jax

# The platform of a program for every platform: native operations only, which JAX differentiates in forward mode, too.
PORTABLE = "portable"
# ``with tracing_for("tpu"):`` traces for that platform. JAX caches what it has traced by this context, too: enter it
# around every call. A program that is traced for "cpu" by name may ask for orders of arrays (`fusion.stored_in_order`).
tracing_for = jax.make_user_context()


def platform() -> str:
    """Return the platform that is traced for: "cpu", "gpu", "tpu" or :data:`PORTABLE`.

    On a mesh with explicit axes it is :data:`PORTABLE`: JAX then asks of every operation how its result is sharded, and
    it knows the answer for native operations.
    """
    if jax.sharding.AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types:
        return PORTABLE
    return tracing_for.value or jax.default_backend()


def training_devices() -> list[Any]:
    """Return the devices that a run trains on: all devices of all hosts."""
    return jax.devices()


def auto_dtype(device: Any) -> str:
    """Return the type that networks compute in on a device of JAX's where the config leaves it open.

    It is "bfloat16" on a TPU, and on an NVIDIA GPU whose tensor cores take it: from compute capability 8.0 (Ampere) on.
    Elsewhere it is "float32". A CPU converts every number of half precision before it computes with it.
    """
    if device.platform == "tpu":
        return "bfloat16"
    capability = re.fullmatch(r"(\d+)\.\d+", str(getattr(device, "compute_capability", "")))
    return "bfloat16" if device.platform == "gpu" and capability and int(capability[1]) >= 8 else "float32"


def on_cpu() -> bool:
    """Return whether what is traced will run on a CPU only. Layers then take what is fast on a CPU."""
    return platform() == "cpu"
