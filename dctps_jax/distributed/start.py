"""Join the processes of a run to JAX's distributed runtime, as ``config.distributed`` says."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax._src import clusters

from dctps_jax.config import check_value
from dctps_jax.distributed import goodbye
from dctps_jax.distributed.relay import Relay
from dctps_jax.errors import UserError, first_line

# The longest that processes wait for each other at the start, in seconds.
JOIN_SECONDS = 300


class Cluster(NamedTuple):
    """Where process 0 listens, how many processes there are, which one this is, and the devices that it takes."""

    coordinator: str
    num_processes: int
    process_id: int
    local_device_ids: Sequence[int] | None = None


_relay: Relay | None = None


def start(settings: Any) -> None:
    """Join this process to the others, unless it is alone or has joined them.

    ``settings`` is ``config.distributed``. Raises :class:`~dctps_jax.errors.UserError` where something is missing, and
    where the others don't come within :data:`JOIN_SECONDS`.
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
    # JAX's own handling of SIGTERM would replace that of the run.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            address,
            cluster.num_processes,
            cluster.process_id,
            cluster.local_device_ids,
            initialization_timeout=JOIN_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"process {cluster.process_id} of {cluster.num_processes} cannot join the others at {cluster.coordinator} "
            f"({first_line(error)}); start all processes, where this address reaches process 0"
        ) from error
    goodbye.bound()


def the_relay() -> Relay | None:
    """Return the relay between this process and process 0; None in process 0, and where another program joined them."""
    return _relay


def find_cluster(settings: Any) -> Cluster | None:
    """Return the processes that a config names, or that JAX detects where it asks for it; None for a process alone."""
    coordinator, num_processes, process_id = settings.coordinator, settings.num_processes, settings.process_id
    if coordinator == "auto":
        return _detected()
    if coordinator == "":
        for name, value, default in (("num_processes", num_processes, 0), ("process_id", process_id, -1)):
            if value != default:
                raise UserError(
                    f"config.distributed.{name} is {value}, but config.distributed.coordinator is empty; give it the "
                    "host:port at which process 0 is to listen, or 'auto' on a cluster that JAX knows"
                )
        return None
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise UserError(
            f"config.distributed.num_processes is {num_processes} and config.distributed.process_id {process_id}; with "
            f"config.distributed.coordinator={coordinator} give the number of all processes, and to each a number of "
            "its own from 0 on"
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
