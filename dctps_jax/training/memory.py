"""Keep freed memory in the process: a step on a CPU allocates and frees the same gigabytes again and again."""

import ctypes
import platform

# Parameters of glibc's mallopt (malloc.h): one arena, which never gives back and never maps single arrays.
SETTINGS = {-8: 1, -4: 0, -1: -1, -2: 2**28}


def keep_freed_memory() -> bool:
    """Tell the C library to keep what is freed; return whether it could be told (glibc only).

    To be called before jax starts its threads, which is with its first question for devices: later it has no effect on
    them. Otherwise every large array is mapped from the system and given back, and each of its pages costs a fault on
    first use. ``benchmarks/train_step.py --keep_memory`` times both.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(parameter, value) for parameter, value in SETTINGS.items()])
