"""Runs of several processes on this machine, each with some of the devices that a CPU pretends to have."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

REPO = Path(__file__).parents[2]
# The longest that a run may take. A run that hangs is killed, and its test fails.
LIMIT_SECONDS = 240
SMALL = (
    "--config.num_epochs=2",
    "--config.batch_size=128",
    "--config.eval_batch_size=96",
    "--config.pruning.density=0.05",
    "--config.optimizer.learning_rate=0.001",
    "--config.tensorboard=False",
    "--config.data.train_fraction=0.5",
    "--config.checkpoint_every_steps=2",
)
STEPS_PER_EPOCH = 5
# What Gloo prints on standard output. Two threads may print at once, so that their lines are mixed and cut anywhere.
NOISE = re.compile(r"^(.*(\[Gloo\]| is connected to |peer ranks).*|[\d ]*)\n", re.MULTILINE)


class Group:
    """The processes of a run: ``codes``, ``out`` and ``err`` of each, once they are finished."""

    def __init__(self, workdirs, options, devices, by_process=None):
        self.workdirs, self.processes = workdirs, []
        port = free_port()
        for index, workdir in enumerate(workdirs):
            place = (
                f"--config.distributed.coordinator=localhost:{port}",
                f"--config.distributed.num_processes={len(workdirs)}",
                f"--config.distributed.process_id={index}",
            )
            more = (by_process or {}).get(index, ())
            self.processes.append(start(workdir, (*options, *more, *place), devices))

    def wait_for(self, text):
        """Return when process 0 has printed a line with `text`."""
        wait_for(self.processes[0], text)

    def send(self, number, *indices):
        for index in indices:
            self.processes[index].send_signal(number)
        self.sent = time.monotonic()

    def finish(self):
        """Wait for all; kill and fail where they take longer than they may."""
        until = time.monotonic() + LIMIT_SECONDS
        try:
            outputs = [process.communicate(timeout=max(1, until - time.monotonic())) for process in self.processes]
        finally:
            for process in self.processes:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        self.codes = [process.returncode for process in self.processes]
        self.out = [NOISE.sub("", out) for out, _ in outputs]
        self.err = [err for _, err in outputs]
        self.seconds = time.monotonic() - getattr(self, "sent", 0)
        return self


def wait_for(process, text):
    """Return when a process has printed a line with `text`; kill it and fail where that takes longer than it may."""
    timer = threading.Timer(LIMIT_SECONDS, process.kill)
    timer.start()
    try:
        for line in process.stdout:
            if text in line:
                return
    finally:
        timer.cancel()
    raise AssertionError(process.communicate())


def start(workdir, options, devices, more_environment=None):
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
        "PYTHONUNBUFFERED": "1",
        **(more_environment or {}),
    }
    command = [sys.executable, "train.py", "--config", "configs/lenet_digits.py", "--workdir", str(workdir)]
    return subprocess.Popen(
        [*command, *SMALL, *options],
        cwd=REPO,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def alone(workdir, *options, devices=4):
    """Run one process to its end; return (exit code, output, errors)."""
    process = start(workdir, options, devices)
    try:
        out, err = process.communicate(timeout=LIMIT_SECONDS)
    finally:
        process.kill()
    return process.returncode, out, err


def group(workdir, *options, processes=2, devices=2, by_process=None):
    return Group([workdir] * processes, options, devices, by_process)


def run(workdir, *options, **more):
    """Run several processes to their end, which has to be a good one."""
    finished = group(workdir, *options, **more).finish()
    assert finished.codes == [0] * len(finished.codes), (finished.codes, finished.out, finished.err)
    return finished


def assert_left_together(finished, code, *texts):
    """All processes left with `code` and one sentence each, which holds `texts`."""
    for index, err in enumerate(finished.err):
        if finished.codes[index] == -signal.SIGKILL:
            continue
        assert finished.codes[index] == code, (finished.codes, finished.err)
        assert err.startswith("train.py: ") and err.count("\n") == 1, finished.err
        for text in texts:
            assert text in err, (index, err)


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
