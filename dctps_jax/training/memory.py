"""Keep freed memory in the process: a step on a CPU allocates and frees the same gigabytes again and again."""

import ctypes
import os
import platform
import resource
from pathlib import Path

import jax

# Parameters of glibc's mallopt (malloc.h): never map single arrays, never give back, grow by 256 MiB.
SETTINGS = {-4: 0, -1: -1, -2: 2**28}

# Linux's advice to use pages of 2 MiB (MADV_HUGEPAGE in sys/mman.h), and for how many bytes it is given.
USE_HUGE_PAGES, HUGE_PAGE, ADVISED = 14, 2**21, 2**32


def keep_freed_memory() -> bool:
    """Tell the C library to keep freed memory; return whether that worked (glibc only).

    Otherwise every large array is mapped from the system and given back, and each of its pages costs a fault on first
    use. glibc keeps large arrays for the main thread only. So programs on a single CPU device run in the thread that
    calls them, and return when they are done. Call this before jax makes its devices, which it does at the first
    question for them: later, programs still run in a thread of their own. ``benchmarks/train_step.py --keep_memory``
    times both.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    libc = ctypes.CDLL(None)
    is_kept = all([libc.mallopt(parameter, value) for parameter, value in SETTINGS.items()])
    if is_kept:
        _advise_huge_pages(libc)
    return is_kept


def _advise_huge_pages(libc: ctypes.CDLL) -> None:
    """Let the memory that the process will use next have pages of 2 MiB, so that each page is found faster.

    On most systems only a program that asks gets such pages. Compared with the previous code by alternating runs, steps
    of LeNet, VGG19, ResNet50 and MobileNetV2 took 2 to 3 % less time with them. The memory is only reserved: a page is
    used when something is stored in it.
    """
    if not _is_reserve_free():
        return
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    start = libc.malloc(ADVISED)
    if start is not None:
        first_page = -(-start // HUGE_PAGE) * HUGE_PAGE
        libc.madvise(first_page, start + ADVISED - first_page, USE_HUGE_PAGES)
        libc.free(start)


def _is_reserve_free() -> bool:
    """Return whether reserved memory counts against no limit, and malloc is glibc's and leaves it untouched."""
    limits = (resource.getrlimit(limit)[0] for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    if any(limit != resource.RLIM_INFINITY for limit in limits):
        return False
    if any(os.environ.get(name) for name in ("LD_PRELOAD", "MALLOC_PERTURB_")):
        return False
    overcommit = Path("/proc/sys/vm/overcommit_memory")  # 2: reserved memory counts for the whole system
    return not (overcommit.exists() and overcommit.read_text().strip() == "2")
