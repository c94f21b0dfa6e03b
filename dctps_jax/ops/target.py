"""The platform that programs are traced for: the one that :data:`tracing_for` names, by default that of this process.

All that depends on the platform asks here: ways of computing, costs, compiler options. A CPU can so trace and compile
the program that a TPU would compile for itself.
"""

from typing import Any

import jax

# The platform of a program for every platform: native operations only.
PORTABLE = "portable"
# ``with tracing_for("tpu"):`` traces for that platform. JAX caches what it has traced by this context, too.
tracing_for = jax.make_user_context()


def platform() -> str:
    """Return the platform that is traced for: "cpu", "gpu", "tpu" or :data:`PORTABLE`."""
    return tracing_for.value or jax.default_backend()


def training_devices() -> list[Any]:
    """Return the devices that a run trains on: all devices of all hosts."""
    return jax.devices()


def on_cpu() -> bool:
    """Return whether what is traced will run on a CPU only. Layers then take what is fast on a CPU."""
    return platform() == "cpu"
