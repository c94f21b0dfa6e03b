"""The C library keeps freed memory when it is told to. Each case is a process of its own."""

import mmap
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from dctps_jax.training import memory

PAGES = 36 * 2**20 // mmap.PAGESIZE  # of each array
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
# The least number of pages that a call maps, of a program whose arrays have 36 MiB each.
COUNT_FAULTS = """
import resource
import jax, jax.numpy as jnp
from dctps_jax.training.memory import keep_freed_memory
kept = {keep} and keep_freed_memory()
program = jax.jit(lambda x: (jnp.sin(x) @ jnp.ones((3072, 8)), x.T + 1))
x = jnp.ones((3072, 3072))
faults = []
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    jax.block_until_ready(program(x))
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(kept, min(faults))
"""


def run(keep: bool) -> tuple[bool, int]:
    code = COUNT_FAULTS.format(keep=keep)
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    kept, faults = printed.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_no_page_is_mapped_again():
    kept, faults = run(keep=True)
    assert kept and faults < PAGES / 16
    if not (HUGE_PAGES.exists() and "[always]" in HUGE_PAGES.read_text()):  # these are mapped with few faults
        assert run(keep=False)[1] > PAGES * 0.9


# The flags of a mapping in which Linux was asked for huge pages have "hg".
FIND_HUGE_PAGES = """
import resource
from pathlib import Path
from dctps_jax.training.memory import keep_freed_memory
for limit in {limits}:
    resource.setrlimit(limit, (2**36, resource.getrlimit(limit)[1]))
keep_freed_memory()
heaps = Path("/proc/self/smaps").read_text().split("[heap]")[1:]
print(any("hg" in heap.split("VmFlags:")[1].splitlines()[0].split() for heap in heaps))
"""


@pytest.mark.skipif(not HUGE_PAGES.exists(), reason="this system has no huge pages")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
@pytest.mark.parametrize("limits", ["[]", "[resource.RLIMIT_AS]", "[resource.RLIMIT_DATA]"])
def test_huge_pages_are_asked_for_where_memory_has_no_limit(limits):
    if not memory._is_reserve_free():
        pytest.skip("memory is limited here")
    code = FIND_HUGE_PAGES.format(limits=limits)
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(limits == "[]")


@pytest.mark.skipif(platform.libc_ver()[0] == "glibc", reason="this is glibc")
def test_another_library_cannot_be_told():
    assert not run(keep=True)[0]
