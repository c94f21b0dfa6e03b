"""The C library is told to keep freed memory, in a process of its own."""

import platform
import subprocess
import sys


def test_glibc_takes_the_settings():
    code = "from dctps_jax.training.memory import keep_freed_memory; print(keep_freed_memory())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(platform.libc_ver()[0] == "glibc")
