"""``dctps-launch``: start several processes of a run on this machine, as one program.

    dctps-launch --processes 2 -- --config lenet_digits --workdir runs/two

Each process gets the options after ``--``, which are options of ``dctps-train``, and its place among the others.
"""

import argparse
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO, Any

from dctps_jax.command import command
from dctps_jax.errors import UserError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# After one process has failed, the others may go on for this many seconds before they are stopped, and then for this
# many seconds before they are killed.
PATIENCE_SECONDS, KILL_SECONDS = 40, 10
USAGE = "dctps-launch --processes N [--devices M] -- --config configs/NAME.py [--workdir DIR] [--config.FIELD=VALUE …]"


def main() -> None:
    with command("dctps-launch"):
        sys.exit(_main(sys.argv[1:]))


def _main(argv: Sequence[str]) -> int:
    own, dashes, options = _split(argv)
    parser = argparse.ArgumentParser("dctps-launch", USAGE, description=__doc__)
    parser.add_argument("--processes", type=int, required=True, help="how many processes")
    parser.add_argument("--devices", type=int, default=0, help="CPU devices that each process pretends to have")
    arguments, of_run = parser.parse_known_args(own)
    if not dashes and (not of_run or of_run[0].startswith(("--config", "--workdir"))):
        raise UserError(f"give the options of the run after --: {USAGE}")
    if of_run:
        parser.error(f"unrecognized arguments: {' '.join(of_run)}")
    if arguments.processes < 1:
        raise UserError(f"--processes is {arguments.processes}; it must be at least 1")
    if arguments.devices < 0:
        raise UserError(f"--devices is {arguments.devices}; it must be at least 1, or 0 for the devices that are there")
    return launch(arguments.processes, arguments.devices, options)


def _split(argv: Sequence[str]) -> tuple[list[str], bool, list[str]]:
    if "--" not in argv:
        return list(argv), False, []
    place = list(argv).index("--")
    return list(argv[:place]), True, list(argv[place + 1 :])


def launch(num_processes: int, num_devices: int, options: Sequence[str]) -> int:
    """Run ``dctps-train`` with ``options`` in several processes; return the exit code of the run.

    Process 0 prints. SIGINT and SIGTERM are passed on to all. GPUs are shared out evenly, where there are any.
    """
    processes: list[subprocess.Popen[Any]] = []
    stops: list[int] = []

    def pass_on(number: int, _: Any) -> None:
        stops.append(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    for number in SIGNALS:
        signal.signal(number, pass_on)
    with tempfile.TemporaryFile() as unheard:
        outputs = [None] + [unheard] * (num_processes - 1)
        processes.extend(start_processes(outputs, num_devices, options))
        for number in tuple(stops):  # signals from before the processes were known; pass_on adds to the list
            pass_on(number, None)
        codes = wait_for_all(processes)
        if codes[0] < 0 or "Traceback" in _text_of(unheard):
            sys.stderr.write(_text_of(unheard))
    code = codes[0] if codes[0] >= 0 else max(codes)
    return code if code >= 0 else 128 - code


def start_processes(
    outputs: Sequence[IO[Any] | int | None], num_devices: int, options: Sequence[str]
) -> list[subprocess.Popen[Any]]:
    """Start a process of ``dctps-train`` for each of ``outputs``.

    An output is the file that the process prints to, or None to print where this process prints.
    """
    port, count = _free_port(), len(outputs)
    processes = []
    for index, (output, devices) in enumerate(zip(outputs, _devices_of_all(count, num_devices), strict=True)):
        place = (
            f"--config.distributed.coordinator=localhost:{port}",
            f"--config.distributed.num_processes={count}",
            f"--config.distributed.process_id={index}",
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "dctps_jax.cli.train", *options, *place],
            env=os.environ | devices,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C comes from this process only
        )
        processes.append(process)
    return processes


def wait_for_all(processes: Sequence[subprocess.Popen[Any]]) -> list[int]:
    """Wait for all processes; return their exit codes.

    If one fails, the others leave. Those that do not leave, because they still wait for it to join, are stopped.
    """
    codes: list[int | None] = [None]
    while None in codes and not any(codes):
        time.sleep(0.1)
        codes = [process.poll() for process in processes]
    for seconds, end in ((PATIENCE_SECONDS, subprocess.Popen.terminate), (KILL_SECONDS, subprocess.Popen.kill)):
        until = time.monotonic() + seconds
        while time.monotonic() < until and any(process.poll() is None for process in processes):
            time.sleep(0.1)
        for process in processes:
            end(process)
    for process in processes:
        process.wait()
    return [process.returncode for process in processes]


def _devices_of_all(num_processes: int, num_devices: int) -> list[dict[str, str]]:
    """Return the variables of the environment that give each process its devices."""
    if num_devices:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={num_devices}"
        return [{"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"}] * num_processes
    gpus = _gpus()
    if not gpus:
        return [{}] * num_processes
    if len(gpus) % num_processes:
        raise UserError(
            f"--processes is {num_processes}, which cannot share {len(gpus)} GPUs evenly; give another number, or name "
            "GPUs in CUDA_VISIBLE_DEVICES"
        )
    share = len(gpus) // num_processes
    shares = [gpus[begin : begin + share] for begin in range(0, len(gpus), share)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(names)} for names in shares]


def _gpus() -> list[str]:
    """Return the NVIDIA GPUs that JAX would use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    if (os.environ.get("JAX_PLATFORMS") or "cuda").split(",")[0] not in ("cuda", "gpu"):
        return []
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        # A negative number hides itself and all GPUs after it.
        return list(itertools.takewhile(lambda name: name and not name.startswith("-"), visible.split(",")))
    names = sorted(int(name[6:]) for name in os.listdir("/dev") if name.startswith("nvidia") and name[6:].isdecimal())
    return [str(number) for number in range(len(names))]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def _text_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


if __name__ == "__main__":
    main()
