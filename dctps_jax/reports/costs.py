"""What a run costs: the bytes of its parts, and theoretical operations of its prunable layers."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from dctps_jax.accounts.flops import PASSES
from dctps_jax.defaults import FIELDS


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

    RigL also computes the gradients of whole kernels, in one of ``update_every`` steps until ``stop_fraction`` of the
    training (Evci et al. 2020, section 3). ``results.json`` does not count these.
    """
    if not results.get("flops"):
        return None
    step = results["flops"]["training_step"]
    sparse = step["sparse"] + step["offset"]
    if config.get("sparse_training.method") == "rigl":
        share = _value(config, "stop_fraction") / _value(config, "update_every")
        sparse += round(share * (step["dense"] / PASSES["dense"] - step["sparse"] / PASSES["sparse"]))
    return Operations(step["dense"], sparse)


def _value(config: Mapping[str, Any], name: str) -> Any:
    field = f"sparse_training.{name}"
    return config.get(field, FIELDS[field].default)
