"""A process that ends does not wait long for one that was killed after the run."""

import subprocess
import sys
import time

import pytest

from tests.distributed.processes import REPO, free_port

PROGRAM = """
import os, sys, time
from dctps_jax.defaults import get_config
from dctps_jax.distributed.process_group import together

config, index, killed = get_config(), int(sys.argv[1]), int(sys.argv[2])
config.distributed.coordinator, config.distributed.num_processes = sys.argv[3], 2
config.distributed.process_id = index
with together(config):
    pass
if index == killed:
    os._exit(9)
print("the end")
"""


@pytest.mark.parametrize("killed", [0, 1])
def test_the_other_one_is_gone(killed):
    address = f"localhost:{free_port()}"
    commands = [[sys.executable, "-c", PROGRAM, str(index), str(killed), address] for index in range(2)]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, cwd=REPO, stdout=pipe, stderr=pipe, text=True) for command in commands]
    processes[killed].communicate(timeout=120)
    began = time.monotonic()
    out, err = processes[1 - killed].communicate(timeout=60)
    assert (processes[1 - killed].returncode, out.splitlines()[-1], err) == (0, "the end", "")
    assert time.monotonic() - began < 30
