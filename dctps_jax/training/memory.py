"""Keep freed memory in the process: a step on a CPU allocates and frees the same gigabytes again and again."""

import ctypes
import platform

import jax

# Parameters of glibc's mallopt (malloc.h): never map single arrays, never give back, grow by 256 MiB.
SETTINGS = {-4: 0, -1: -1, -2: 2**28}


def keep_freed_memory() -> bool:
    """Tell the C library to keep what is freed; return whether it could be told (glibc only).

    Otherwise every large array is mapped from the system and given back, and each of its pages costs a fault on first
    use. glibc keeps large arrays only for the main thread. So programs on a single CPU device run in the thread that
    calls them, and return when they are done. To be called before jax makes its devices, which is with its first
    question for them: later, programs still run in a thread of their own. ``benchmarks/train_step.py --keep_memory``
    times both.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(parameter, value) for parameter, value in SETTINGS.items()])
