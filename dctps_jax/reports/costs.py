"""What a run costs: the bytes of its parts, and theoretical operations of its prunable layers."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from dctps_jax.accounts.flops import PASSES
from dctps_jax.defaults import FIELDS
from dctps_jax.pruning.dynamic import MovingSchedule


class Operations(NamedTuple):
    """Operations with whole kernels, and of the trained weights and the offset."""

    dense: int
    sparse: int


def costs_of(config: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the bytes and operations of a run by name; None for what its version did not record."""
    storage, flops = results.get("storage_bytes"), results.get("flops")
    costs: dict[str, Any] = {"state_bytes": None, "checkpoint_bytes": None}
    if storage:
        costs["state_bytes"] = sum(storage[kind]["this"] for kind in ("parameters", "supports", "optimizer_state"))
        costs["checkpoint_bytes"] = storage["checkpoint"]["this"]
    image = flops["inference_of_an_image"] if flops else None
    inference = Operations(image["dense"], image["sparse"] + image["offset"]) if image else None
    for name, count in (("inference_of_an_image", inference), ("training_step", operations_of_a_step(config, results))):
        costs[f"{name}_flops_dense"], costs[f"{name}_flops_sparse"] = count or (None, None)
    return costs


def operations_of_a_step(config: Mapping[str, Any], results: Mapping[str, Any]) -> Operations | None:
    """Return the operations of a training step on a batch, the mean over all steps; None if they are not recorded.

    RigL also computes the gradients of whole kernels, in the steps in which it moves weights (Evci et al. 2020,
    section 3). ``results.json`` does not count these.
    """
    if not results.get("flops"):
        return None
    step = results["flops"]["training_step"]
    sparse = step["sparse"] + step["offset"]
    if config.get("sparse_training.method") == "rigl":
        sparse += round(
            _share_of_moves(config, results) * (step["dense"] / PASSES["dense"] - step["sparse"] / PASSES["sparse"])
        )
    return Operations(step["dense"], sparse)


def _share_of_moves(config: Mapping[str, Any], results: Mapping[str, Any]) -> float:
    """Return in which part of the steps RigL moves weights; results of version 0.1.0 have no number of steps."""
    every, stop, steps = _value(config, "update_every"), _value(config, "stop_fraction"), results.get("step")
    if steps is None:
        return stop / every
    schedule = MovingSchedule(every, int(stop * steps), 0.0)
    return sum(schedule.is_update(step) for step in range(steps)) / steps


def _value(config: Mapping[str, Any], name: str) -> Any:
    field = f"sparse_training.{name}"
    return config.get(field, FIELDS[field].default)
