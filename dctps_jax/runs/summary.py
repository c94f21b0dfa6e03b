"""The summary of a finished run: its closing line, the mean over seeds, and its environment."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from dctps_jax.runs.metrics import mean_and_std
from dctps_jax.runs.workdir import write_results


def last_line(results: dict[str, Any]) -> str:
    """Return the closing line of a run, or of the runs of several seeds."""
    if "seeds" in results:
        best, final, ema = (_mean(results, f"test_accuracy_{which}") for which in ("best", "final", "ema"))
        averaged = f", of averaged weights {ema}" if "test_accuracy_ema" in results else ""
        return f"{len(results['seeds'])} seeds: test accuracy of the best epoch {best}, of the last {final}{averaged}"
    best, ema = results["test_accuracy_best"], results.get("test_accuracy_ema")
    averaged = "" if ema is None else f", {ema:.2%} of averaged weights"
    return (
        f"test accuracy {results['test_accuracy_final']:.2%} after the last epoch, "
        f"{'unknown' if best is None else f'{best:.2%}'} after epoch {results['best_epoch']}, the best on validation "
        f"({results['best_val_accuracy']:.2%}){averaged}"
    )


def _mean(results: dict[str, Any], name: str) -> str:
    return f"{results[name]:.2%} ± {results[f'{name}_std']:.2%}" if name in results else "unknown"


def summarize(runs: list[dict[str, Any]], workdir: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Write and print mean and standard deviation of the runs of several seeds; return what was written."""
    seeds = [results["seed"] for results in runs]
    results: dict[str, Any] = {"seed": seeds[0], "seeds": seeds}
    for name in ("best_val_accuracy", "test_accuracy_best", "test_accuracy_final", "test_accuracy_ema"):
        values = [results[name] for results in runs if results.get(name) is not None]
        if len(values) == len(runs):  # a mean over some seeds would be taken for one over all
            results[name], results[f"{name}_std"] = mean_and_std(values)
    for name in ("density", "density_asked", "layer_densities", "trainable_parameters"):
        results[name] = runs[0][name]
    if "dtype" in runs[0]:
        results["dtype"] = runs[0]["dtype"]
    results = write_results(workdir, results, config, {})
    print(last_line(results))
    return results


def environment() -> dict[str, Any]:
    """Return the devices of this run, the processor cores that it may use, and the versions of packages.

    The number of cores is that by which XLA divides sums on a CPU: with another one they are rounded in another order.
    """
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"device": f"{jax.device_count()} × {device.platform} {device.device_kind}", "cores": cores} | versions()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute a run."""
    packages = ("dctps_jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "not installed"
