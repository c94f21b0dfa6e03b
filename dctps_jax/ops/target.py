"""The platform that programs are traced for: :data:`tracing_for` names it; by default it is this process's.

All that depends on the platform asks here: ways of computing, costs, compiler options, the type that "auto" stands for.
So a CPU can trace and compile the program that a TPU would compile for itself.
"""

import re
from typing import Any

import jax

# A program for every platform has native operations only. JAX can also differentiate them in forward mode.
PORTABLE = "portable"
# ``with tracing_for("tpu"):`` traces for that platform. JAX also caches its traces by this context: enter it around
# every call. A program that is traced for "cpu" by name may ask for orders of arrays (`fusion.stored_in_order`).
tracing_for = jax.make_user_context()


def platform() -> str:
    """Return the platform that is traced for: "cpu", "gpu", "tpu" or :data:`PORTABLE`.

    On a mesh with explicit axes it is :data:`PORTABLE`. JAX then asks every operation how its result is sharded, and
    knows the answer for native operations only.
    """
    if jax.sharding.AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types:
        return PORTABLE
    return tracing_for.value or jax.default_backend()


def training_devices() -> list[Any]:
    """Return the devices that a run trains on: all devices of all hosts."""
    return jax.devices()


def auto_dtype(device: Any) -> str:
    """Return the type that networks compute in on a device of JAX if the config leaves it open.

    It is "bfloat16" on a TPU, and on an NVIDIA GPU whose tensor cores support it: compute capability 8.0 (Ampere) or
    more. Elsewhere it is "float32": a CPU converts every number of half precision before it computes with it.
    """
    if device.platform == "tpu":
        return "bfloat16"
    capability = re.fullmatch(r"(\d+)\.\d+", str(getattr(device, "compute_capability", "")))
    return "bfloat16" if device.platform == "gpu" and capability and int(capability[1]) >= 8 else "float32"


def on_cpu() -> bool:
    """Return whether traced programs will run on a CPU only. Layers then choose code that is fast on a CPU."""
    return platform() == "cpu"
