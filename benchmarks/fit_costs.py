"""Fit the costs of a platform to measured layers: ``python benchmarks/fit_costs.py benchmarks/results/layers_*.json``.

The files are results of ``benchmarks/layers.py`` or ``tpu_layers.py``, all of one machine. A predicted time is a sum of
counts times costs, so the costs follow by non-negative least squares of the relative errors. The fit starts from a file
of ``dctps_jax/ops/costs/``. It changes the costs that ``--fit`` names, by default all that the start does not list as
``by_hand``. Costs that the measured layers do not determine keep their values. The script prints the costs before and
after, and their residuals. ``--output FILE`` writes the fitted costs as such a file, with machine, versions, date and
residuals. With ``--keep`` nothing is fitted: the script prints and writes the residuals of the start. Needs the package
installed, or ``PYTHONPATH=.``.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls

from dctps_jax import UserError
from dctps_jax.offsets import find_offset
from dctps_jax.ops.costs import FILES, HALF, Costs
from dctps_jax.ops.geometry import Geometry
from dctps_jax.ops.methods import METHODS
from dctps_jax.ops.work import Work

DENSE_LAYER = "dense layer"  # what benchmarks/layers.py calls the layer of a dense network; it is not predicted


class Sample(NamedTuple):
    """What one method took for one layer; ``layer`` is the same number for all methods of a layer."""

    layer: int
    work: Work
    method: str
    seconds: float


def read_results(files: Iterable[Path]) -> tuple[list[Sample], dict[str, Any]]:
    """Return the samples of all files, and their machine, versions, platform and dates.

    Raises :class:`~dctps_jax.errors.UserError` for a file that is not a result of ``layers.py``, or that comes from
    another machine than the first file.
    """
    samples: list[Sample] = []
    origin: dict[str, Any] = {}
    layers = 0
    for file in files:
        try:
            result = json.loads(file.read_text())
            offset = find_offset(None if result["command"]["offset"] == "none" else result["command"]["offset"])
            device = result["environment"]["device"]
            found = {
                "machine": result["machine"] if " cpu" in device else f"{device}, {result['machine']}",
                "versions": {
                    name: version for name, version in result["environment"].items() if name in ("python", "jax")
                },
                "platform": _platform_of(device, result["command"].get("dtype", "float32")),
            }
            for layer in result["layers"]:
                work = _work_of(layer, offset)
                times = {method: seconds for method, seconds in layer["seconds"].items() if method != DENSE_LAYER}
                samples += [Sample(layers, work, method, seconds) for method, seconds in times.items()]
                layers += 1
            dates = sorted({*origin.get("dates", ()), result["date"]})
        except OSError as error:
            raise UserError(
                f"{file} cannot be read ({error.strerror}); give results of benchmarks/layers.py"
            ) from error
        except (ValueError, KeyError, TypeError, StopIteration) as error:
            raise UserError(f"{file} holds no result of benchmarks/layers.py ({error!r})") from error
        for name, value in found.items():
            if origin.setdefault(name, value) != value:
                raise UserError(
                    f"{file} has the {name} {value}, the files before it {origin[name]}; give files of one machine"
                )
        origin["dates"] = dates
    foreign = sorted({sample.method for sample in samples} - set(METHODS))
    if foreign:
        raise UserError(f"the files hold times of {', '.join(foreign)}; the methods are: {', '.join(METHODS)}")
    return samples, origin


def read_start(path: Path) -> dict[str, Any]:
    """Return the content of a file of costs; raise UserError if it is missing or holds something else."""
    try:
        file = json.loads(path.read_text())
        Costs(**file["nanoseconds"])
        list(file["by_hand"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no file of costs as in dctps_jax/ops/costs ({error!r})") from error
    return file


def _platform_of(device: str, dtype: str) -> str:
    """Return the key of :data:`FILES` for a device and the dtype of its inputs."""
    ending = HALF if dtype.endswith("float16") else ""
    return next(
        platform for platform in FILES if f" {platform.removesuffix(ending)}" in device and platform.endswith(ending)
    )


def _work_of(layer: dict[str, Any], offset: Any) -> Work:
    kernel, inputs = tuple(layer["kernel"]), tuple(layer["inputs"])
    pads = tuple((low, high) for low, high in layer["pads"])
    geometry = Geometry(kernel, (layer["stride"],) * len(pads), pads, groups=inputs[-1] // kernel[-2])
    return Work(geometry, inputs, layer["nnz"], offset)


def counts_of(samples: Sequence[Sample]) -> np.ndarray:
    """Return ``[samples, costs]``, how often each cost counts in the prediction of each sample.

    A prediction is linear in the costs: its count of a cost is its value where this cost is 1 and the others are 0.
    """
    units = [Costs(*row) for row in np.eye(len(Costs._fields))]
    return np.array([[METHODS[sample.method].cost(sample.work, unit) for unit in units] for sample in samples])


def fitted(samples: Sequence[Sample], start: Costs, names: Sequence[str]) -> tuple[Costs, list[str]]:
    """Return the costs with ``names`` fitted, and those among ``names`` that the samples do not determine.

    The fit minimises the sum of the squares of ``predicted / measured − 1``. All other costs keep their values of
    ``start``.
    """
    relative = counts_of(samples) / (1e9 * np.array([[sample.seconds] for sample in samples]))
    scale = np.linalg.norm(relative, axis=0)
    columns = [Costs._fields.index(name) for name in names]
    known = [column for column in columns if scale[column] > 0]
    held = np.array(start)
    held[known] = 0
    solution, _ = nnls(relative[:, known] / scale[known], 1 - relative @ held)
    held[known] = solution / scale[known]
    return Costs(*held.tolist()), [Costs._fields[column] for column in columns if column not in known]


def residuals(samples: Sequence[Sample], costs: Costs) -> dict[str, Any]:
    """Return how far predictions are from the samples, and how much time choices by prediction lose.

    For all samples and for each method: their number, the root mean square of ``predicted / measured − 1``, and the
    median of its absolute value. ``regret``: how much longer the methods with the least predicted times take than the
    fastest ones, summed over the layers of the files.
    """
    predicted = 1e-9 * counts_of(samples) @ np.array(costs)
    seconds = np.array([sample.seconds for sample in samples])
    errors = predicted / seconds - 1
    methods = np.array([sample.method for sample in samples])
    layers = np.array([sample.layer for sample in samples])
    parts = {"all": np.ones(len(samples), bool)} | {name: methods == name for name in METHODS}
    table = {
        name: {
            "samples": int(part.sum()),
            "root_mean_square": round(float(np.sqrt(np.mean(errors[part] ** 2))), 4),
            "median": round(float(np.median(np.abs(errors[part]))), 4),
        }
        for name, part in parts.items()
        if part.any()
    }
    chosen = sum(seconds[layers == layer][predicted[layers == layer].argmin()] for layer in set(layers.tolist()))
    best = sum(seconds[layers == layer].min() for layer in set(layers.tolist()))
    return {"relative_errors": table, "regret": round(float(chosen / best - 1), 4)}


def comparison(start: Costs, found: Costs, undetermined: Iterable[str]) -> str:
    """Return the costs before and after as a table."""
    rows = [f"{'nanoseconds':22}{'start':>12}{'fitted':>12}"]
    for name, before, after in zip(Costs._fields, start, found, strict=True):
        note = "  not determined" if name in undetermined else "" if before != after else "  kept"
        rows.append(f"{name:22}{before:12.4g}{after:12.4g}{note}")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="results of benchmarks/layers.py, of one machine")
    parser.add_argument(
        "--start", type=Path, help="file of costs to start from; by default the package's of the platform"
    )
    parser.add_argument("--fit", nargs="+", choices=Costs._fields[:-1], help="costs to fit")
    parser.add_argument("--keep", action="store_true", help="fit nothing; print the residuals of the start")
    parser.add_argument("--output", type=Path, help="file to write the costs to")
    arguments = parser.parse_args()
    try:
        samples, origin = read_results(arguments.files)
        file = read_start(arguments.start or FILES[origin["platform"]])
    except UserError as error:
        sys.exit(f"fit_costs: {error}")
    start = Costs(**file["nanoseconds"])
    names = arguments.fit or [name for name in Costs._fields if name not in file["by_hand"]]
    found, undetermined = (start, []) if arguments.keep else fitted(samples, start, names)
    print(comparison(start, found, undetermined))
    for title, costs in {"start": start, "fitted": found}.items():
        print(title, json.dumps(residuals(samples, costs), indent=1))
    if arguments.output:
        measured = {"files": [path.name for path in arguments.files], **origin}
        if not arguments.keep:
            file |= {name: origin[name] for name in ("platform", "machine", "versions")}
            file |= {"date": origin["dates"][-1], "by_hand": [name for name in Costs._fields if name not in names]}
            file |= {"note": f"Fitted by benchmarks/fit_costs.py to: {', '.join(measured['files'])}."}
        file |= {"nanoseconds": found._asdict(), "residuals": measured | residuals(samples, found)}
        arguments.output.write_text(json.dumps(file, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
