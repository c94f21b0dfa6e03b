"""Join the processes of a run to JAX's distributed runtime, as ``config.distributed`` says."""

import os
import socket
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax._src import clusters

from dctps_jax.command import end_process, say
from dctps_jax.config import check_value
from dctps_jax.distributed import exit_timeout
from dctps_jax.distributed.relay import Relay
from dctps_jax.errors import UserError, first_line

# Processes wait this many seconds for each other at the start, at most.
JOIN_SECONDS = 300
# After this many seconds a process prints that it waits.
SAY_SECONDS = 10


class Cluster(NamedTuple):
    """Where process 0 listens, how many processes there are, which one this is, and the devices that it takes."""

    coordinator: str
    num_processes: int
    process_id: int
    local_device_ids: Sequence[int] | None = None


_relay: Relay | None = None


def start(settings: Any) -> None:
    """Join this process to the others, unless it is alone or has joined them.

    ``settings`` is ``config.distributed``. Raises :class:`~dctps_jax.errors.UserError` if something is missing, or if
    the others do not come within :data:`JOIN_SECONDS`.
    """
    global _relay
    for name in ("coordinator", "num_processes", "process_id"):
        check_value(f"distributed.{name}", settings[name])
    cluster = find_cluster(settings)
    if cluster is None or cluster.num_processes == 1 or jax.distributed.is_initialized():
        return
    address = cluster.coordinator
    if cluster.process_id > 0:
        _relay = Relay(address)
        address = _relay.address
    if cluster.process_id == 0:
        _check_port(address)
    # JAX's own handling of SIGTERM would replace that of the run.
    jax.config.update("jax_enable_preemption_service", False)
    has_joined = threading.Event()
    threading.Thread(target=_wait, args=(cluster, has_joined), name="start", daemon=True).start()
    try:
        jax.distributed.initialize(
            address,
            cluster.num_processes,
            cluster.process_id,
            cluster.local_device_ids,
            initialization_timeout=2 * JOIN_SECONDS,  # JAX 0.10.2 aborts after it
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"process {cluster.process_id} of {cluster.num_processes} cannot join the others at {cluster.coordinator} "
            f"({first_line(error)}); start all processes, where this address reaches process 0"
        ) from error
    finally:
        has_joined.set()
    exit_timeout.bound()


def _check_port(address: str) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` if process 0 cannot listen at its port.

    JAX 0.10.2 would end by a segmentation fault, see ``test_a_port_that_is_used_is_one_sentence``.
    """
    port = int(address.rpartition(":")[2])
    with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UserError(
                f"config.distributed.coordinator is {address}, but process 0 cannot listen at port {port} here "
                f"({error.strerror}); end what uses it, another process 0 perhaps, or choose another port"
            ) from error


def _wait(cluster: Cluster, has_joined: threading.Event) -> None:
    """Print after a while that this process waits, and end it before JAX aborts it."""
    me = f"process {cluster.process_id} of {cluster.num_processes}"
    if has_joined.wait(SAY_SECONDS):
        return
    say(f"{me} waits for the others at {cluster.coordinator}, up to {JOIN_SECONDS} s")
    if not has_joined.wait(JOIN_SECONDS - SAY_SECONDS):
        end_process(
            UserError.exit_code,
            f"{me} has waited {JOIN_SECONDS} s for the others at {cluster.coordinator}; start all processes, each with "
            f"a number of its own from 0 to {cluster.num_processes - 1}, where this address reaches process 0",
        )


def the_relay() -> Relay | None:
    """Return the relay between this process and process 0; None in process 0, or if another program joined them."""
    return _relay


def find_cluster(settings: Any) -> Cluster | None:
    """Return the processes that a config names, or that JAX detects if it asks for that; None for a single process."""
    coordinator, num_processes, process_id = settings.coordinator, settings.num_processes, settings.process_id
    if coordinator in ("", "auto"):
        for name, value, default in (("num_processes", num_processes, 0), ("process_id", process_id, -1)):
            if value != default:
                raise UserError(
                    f"config.distributed.{name} is {value}, but config.distributed.coordinator is "
                    f"{coordinator or 'empty'}; give it the host:port at which process 0 is to listen, or leave both "
                    "numbers out with 'auto' on a cluster that JAX knows"
                )
        return _detected() if coordinator == "auto" else None
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise UserError(
            f"config.distributed.num_processes is {num_processes} and config.distributed.process_id {process_id}; with "
            f"config.distributed.coordinator={coordinator} give the number of all processes, and to each a number of "
            "its own from 0 to one less"
        )
    return Cluster(coordinator, num_processes, process_id)


def _detected() -> Cluster:
    """Return what JAX detects on TPU pods, Slurm, Open MPI and Kubernetes."""
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    try:
        found = clusters.ClusterEnv.auto_detect_unset_distributed_params(address, None, None, None, None, JOIN_SECONDS)
    except Exception as error:  # whatever the environment of a cluster lacks
        reason: str = f"({type(error).__name__}: {first_line(error)})"
    else:
        coordinator, num_processes, process_id, devices = found
        if coordinator is not None and num_processes is not None and process_id is not None:
            return Cluster(coordinator, num_processes, process_id, devices)
        reason = "(no TPU pod, Slurm, Open MPI or Kubernetes)"
    raise UserError(
        f"config.distributed.coordinator is 'auto', but JAX finds no cluster here {reason}; give host:port, and "
        "config.distributed.num_processes and config.distributed.process_id"
    )
