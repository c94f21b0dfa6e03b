"""How processes find each other: what is missing is one sentence; the relay; what each process gets."""

import json
import re
import socket
import subprocess
import sys
import threading

import pytest

from dctps_jax.cli import launch, train
from dctps_jax.distributed.process_group import HostLog
from dctps_jax.distributed.relay import Relay
from dctps_jax.errors import UserError
from dctps_jax.runs.workdir import claim, record_config
from dctps_jax.training.run import run
from tests.commands import assert_one_sentence, call
from tests.distributed.processes import REPO, free_port
from tests.small_runs import small_config

CONFIG = ("--config", "configs/lenet_digits.py")


@pytest.mark.parametrize(
    ("coordinator", "num_processes", "process_id", "message"),
    [
        ("", 2, -1, "num_processes is 2, but config.distributed.coordinator is empty; give it the host:port"),
        ("", 0, 0, "process_id is 0, but config.distributed.coordinator is empty; give it the host:port"),
        (
            "a:1",
            0,
            0,
            "num_processes is 0 and config.distributed.process_id 0; with config.distributed.coordinator=a:1",
        ),
        ("a:1", 2, -1, "num_processes is 2 and config.distributed.process_id -1; with "),
        ("a:1", 2, 2, "num_processes is 2 and config.distributed.process_id 2; with "),
        ("auto", 4, -1, "num_processes is 4, but config.distributed.coordinator is auto; give it the host:port"),
        ("auto", 0, -1, "is 'auto', but JAX finds no cluster here (no TPU pod, Slurm, Open MPI or Kubernetes); give "),
        (
            "host",
            2,
            0,
            "config.distributed.coordinator is 'host'; it must be host:port with a port up to 65535, 'auto'",
        ),
    ],
)
def test_what_is_missing_is_one_sentence(tmp_path, coordinator, num_processes, process_id, message):
    config = small_config(
        distributed__coordinator=coordinator,
        distributed__num_processes=num_processes,
        distributed__process_id=process_id,
    )
    with pytest.raises(UserError, match=re.escape(message)):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


ALONE = """
import sys
from dctps_jax.defaults import get_config
from dctps_jax.distributed import start

start.JOIN_SECONDS, start.SAY_SECONDS = 6, 2
config = get_config().distributed
config.coordinator, config.num_processes, config.process_id = sys.argv[1], 2, int(sys.argv[2])
start.start(config)
"""


@pytest.mark.parametrize("number", [0, 1])
def test_a_process_that_waits_says_so_and_leaves_with_one_sentence(number):
    address = f"localhost:{free_port()}"
    command = [sys.executable, "-c", ALONE, address, str(number)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60)
    waits, left = (line for line in done.stderr.splitlines() if line.startswith("-c: "))
    assert (done.returncode, done.stdout) == (2, "")
    assert waits == f"-c: process {number} of 2 waits for the others at {address}, up to 6 s"
    assert left.startswith(f"-c: process {number} of 2 has waited 6 s for the others at {address}; start all processes")


def test_a_port_that_is_used_is_one_sentence():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        command = [sys.executable, "-c", ALONE, f"localhost:{port}", "0"]
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60)
    last = done.stderr.splitlines()[-1]
    assert f"coordinator is localhost:{port}, but process 0 cannot listen at port {port} here" in last
    assert "(Address already in use); end what uses it, another process 0 perhaps, or choose another port" in last


def test_the_former_field_is_one_sentence(tmp_path):
    done = call(train.main, *CONFIG, "--workdir", tmp_path, "--config.multi_host=True")
    assert_one_sentence(done, "train.py", "config.multi_host is gone; config.distributed.coordinator='auto'")


def test_a_run_that_has_the_former_field_goes_on(tmp_path):
    with claim(tmp_path, small_config()):
        record_config(tmp_path, small_config())
    path = tmp_path / "config.json"
    recorded = json.loads(path.read_text())
    del recorded["distributed"]
    path.write_text(json.dumps(recorded | {"multi_host": True}))
    with claim(tmp_path, small_config()):
        pass


@pytest.fixture
def relayed():
    """A server, an address that is relayed to it, and the event that it is lost."""
    server = socket.create_server(("127.0.0.1", 0))
    relay = Relay(f"127.0.0.1:{server.getsockname()[1]}")
    lost = threading.Event()
    relay.on_lost = lost.set
    host, port = relay.address.split(":")
    return server, (host, int(port)), lost


def test_the_relay_outlives_the_other_end(relayed):
    server, address, lost = relayed
    with socket.create_connection(address, timeout=5) as client:
        other, _ = server.accept()
        client.sendall(b"there")
        assert other.recv(10) == b"there"
        other.sendall(b"back")
        assert client.recv(10) == b"back"
        other.close()
        assert lost.wait(5)
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):  # it is still open
            client.recv(10)


def test_the_relay_is_told_nothing_where_the_client_leaves(relayed):
    server, address, lost = relayed
    with socket.create_connection(address, timeout=5):
        other, _ = server.accept()
    assert other.recv(10) == b""
    other.close()
    assert not lost.wait(0.3)


def test_a_log_holds_what_was_printed_before_there_was_a_file(tmp_path):
    log = HostLog()
    print("early", file=log)
    log.open(tmp_path / "host_1.log")
    print("late", file=log)
    assert (tmp_path / "host_1.log").read_text() == "early\nlate\n"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--processes", "2"], "give the options of the run after --"),
        (["--processes", "2", *CONFIG], "give the options of the run after --"),
        (["--processes", "2", "--devices", "-1", "--", *CONFIG], "--devices is -1; it must be at least 1, or 0"),
        (["--processes", "0", "--", *CONFIG], "--processes is 0; it must be at least 1"),
    ],
)
def test_launching_without_what_it_needs(arguments, part):
    assert_one_sentence(call(launch.main, *arguments), "dctps-launch", part)


def test_gpus_that_cannot_be_shared(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    done = call(launch.main, "--processes", "2", "--", *CONFIG)
    assert_one_sentence(done, "dctps-launch", "--processes is 2, which cannot share 3 GPUs evenly")
