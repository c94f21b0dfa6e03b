"""Keep compiled programs in the user's cache, so that a later start of the same run compiles nothing."""

import hashlib
import platform
import warnings
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from dctps_jax.data.reading import cache_folder


def keep_compiled_programs() -> Path | None:
    """Have JAX keep what it compiles below ``dctps_jax/compiled`` in the user's cache; return the folder.

    This is a setting of the whole process. If JAX has such a folder already (``JAX_COMPILATION_CACHE_DIR``), or must
    keep nothing (``JAX_ENABLE_COMPILATION_CACHE=false``), nothing is changed and None is returned.
    """
    settings: Any = jax.config  # its fields are unknown to type checkers
    if settings.jax_compilation_cache_dir or not settings.jax_enable_compilation_cache:
        return None
    # JAX (0.10.2) loads a program for a CPU unchanged, even on a CPU that lacks some of its instructions.
    folder = cache_folder("compiled") / f"{platform.machine()}_{hashlib.sha256(_cpu_flags()).hexdigest()[:12]}"
    compilation_cache.reset_cache()  # JAX sets its cache up only once, when it first compiles
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # An entry that cannot be read, or not written for want of room, is compiled again: only time is lost.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    return folder


def _cpu_flags() -> bytes:
    """Return the line in which Linux names the instructions of the CPU; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return b""
    return next((line for line in lines if line.startswith((b"flags", b"Features"))), b"")
