"""Print the tables of docs/execution.md and benchmarks/README.md: ``python benchmarks/tables.py``.

The figures are in benchmarks/results/.

``step_NETWORK.json`` (benchmarks/train_step.py) gives one row for each network: the dense step in milliseconds, the
speed-up of a DCT plus Sparse step, and its peak memory. ``h100_step_NETWORK.json`` gives the same for a GPU.
``layers_NETWORK_DENSITY.json`` (benchmarks/layers.py) gives the parts of a step's CPU time.
``versus_torch_NETWORK.json``, ``xeon_versus_torch_NETWORK.json`` and ``h200_versus_torch_vgg19.json``
(benchmarks/versus_torch.py) have the steps beside PyTorch's. ``masked_mlp.json`` (benchmarks/masked_mlp.py) has the
steps of a perceptron beside sparse matrices. ``input.json`` (benchmarks/input.py) has the ways of reading images.
``tpu_NETWORK.json`` (benchmarks/tpu.py) and ``v5e_layers_NETWORK_DENSITY_DTYPE.json`` (benchmarks/tpu_layers.py) have
the estimates of a TPU's compiler.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
NETWORKS = {
    "resnet50": "ResNet50",
    "vgg19": "VGG19",
    "mobilenet_v2": "MobileNetV2",
    "fixup_resnet110": "Fixup-ResNet110",
    "lenet": "LeNet",
}
DENSITIES = ("0.01", "0.001", "0.0001")
OPERATIONS = ("forward", "inputs", "trained")


def table(prefix: str = "", densities: Sequence[str] = DENSITIES) -> str:
    """Return the table of steps as Markdown. The results are those of the CPU, or those whose names have ``prefix``."""
    names = [f"{100 * float(density):g} %" for density in densities]
    lines = [
        f"| network, batch | dense, ms a step | {' | '.join(names)} | peak memory, 0.1 % : dense |",
        f"| --- | ---: | {' | '.join('---:' for _ in names)} | ---: |",
    ]
    for network, name in NETWORKS.items():
        file = RESULTS / f"{prefix}step_{network}.json"
        if not file.exists():
            continue
        result = json.loads(file.read_text())
        cases = {case["case"]: case for case in result["cases"]}
        dense = cases[f"{network}:none:1"]
        sparse = {density: cases.get(f"{network}:dct:{density}") for density in densities}
        seconds = dense["wall_seconds_minimum"]
        ratios = [f"{seconds / case['wall_seconds_minimum']:.2f}×" if case else "" for case in sparse.values()]
        peak = f"{cases[f'{network}:dct:0.001']['peak_bytes'] / dense['peak_bytes']:.2f}"
        time = f"{1000 * seconds:,.0f}" if seconds > 0.1 else f"{1000 * seconds:.1f}"
        lines.append(f"| {name}, {result['command']['batch_size']} | {time} | {' | '.join(ratios)} | {peak} |")
    return "\n".join(lines)


def profile() -> str:
    """Return the parts of the layers' CPU time as a Markdown table, in milliseconds."""
    lines = [
        "| network, batch | | dense | 0.1 % | 0.01 % |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for network, name in NETWORKS.items():
        files = [RESULTS / f"layers_{network}_{density}.json" for density in DENSITIES[1:]]
        if not all(file.exists() for file in files):
            continue
        results = [json.loads(file.read_text()) for file in files]
        layers = [result["layers"] for result in results]
        columns = [("dense_layer", layers[0]), *(("chosen", those) for those in layers)]
        label = f"{name}, {results[0]['command']['batch_size']}"
        for kind in dict.fromkeys(map(_kind, layers[0])):
            cells = [_spent(way, [layer for layer in those if _kind(layer) == kind]) for way, those in columns]
            lines.append(f"| {label} | {kind} | {' | '.join(cells)} |")
            label = ""
    return "\n".join(lines)


def versus_torch(cases: Sequence[dict[str, Any]]) -> str:
    """Return the cases of versus_torch.py as a Markdown table. The ratio is to the fastest dense network in PyTorch.

    A case that was not timed is left out.
    """
    lines = [
        "| network | case | step ms, minimum | median | peak MB | compile s | against PyTorch's fastest dense |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    timed = [case for case in cases if "wall_seconds_minimum" in case]
    for case in timed:
        lines.append(
            f"| {case['network']} | {case['case']} | {1000 * case['wall_seconds_minimum']:.3f} | "
            f"{1000 * case['wall_seconds_median']:.3f} | "
            f"{case['peak_bytes'] / 1e6:,.0f} | {case['compile_seconds']:.1f} | {_beside_torch(case, timed)} |"
        )
    return "\n".join(lines)


def _beside_torch(case: dict[str, Any], timed: Sequence[dict[str, Any]]) -> str:
    """Return how many times as fast a case is as the fastest dense step of PyTorch with the same network."""
    dense = [
        other["wall_seconds_minimum"]
        for other in timed
        if other["network"] == case["network"] and other["case"].startswith("PyTorch dense")
    ]
    return f"{min(dense) / case['wall_seconds_minimum']:.2f}×" if dense else ""


def versus_torch_by_machine() -> str:
    """Return the ratios of this package's steps to PyTorch's fastest dense step, for two machines."""
    names = {"this package, dense, float32": "dense", "this package, DCT 0.001, float32": "0.1 %"}
    prefixes = {"": "AMD EPYC", "xeon_": "Intel Xeon"}
    columns = [f"{machine}, {name}" for machine in prefixes.values() for name in names.values()]
    lines = [f"| network, batch | {' | '.join(columns)} |", f"| --- | {' | '.join('---:' for _ in columns)} |"]
    for network, label in NETWORKS.items():
        results = [json.loads((RESULTS / f"{prefix}versus_torch_{network}.json").read_text()) for prefix in prefixes]
        cells = [
            _beside_torch(case, result["cases"])
            for result in results
            for name in names
            for case in result["cases"]
            if case["case"] == name
        ]
        (batch_size,) = {result["command"]["batch_size"] for result in results}
        lines.append(f"| {label}, {batch_size} | {' | '.join(cells)} |")
    return "\n".join(lines)


def versus_torch_on_cpu() -> str:
    """Return the table of all networks that were timed beside PyTorch on a CPU."""
    files = [RESULTS / f"versus_torch_{network}.json" for network in NETWORKS]
    return versus_torch([case for file in files if file.exists() for case in saved_cases(file.stem)])


def masked_mlp(cases: Sequence[dict[str, Any]]) -> str:
    """Return the cases of masked_mlp.py as a Markdown table. The ratio is to this package's layers."""
    lines = [
        "| density | variant | seconds an epoch | MB added | this package is faster by |",
        "| ---: | --- | ---: | ---: | ---: |",
    ]
    ours = {case["density"]: case["seconds"] for case in cases if case["variant"] == "package"}
    for case in cases:
        ratio = f"{case['seconds'] / ours[case['density']]:.1f}×" if case["density"] in ours else ""
        lines.append(
            f"| {100 * case['density']:g} % | `{case['variant']}` | {case['seconds']:.2f} | {case['megabytes']:,.0f} | "
            f"{ratio} |"
        )
    return "\n".join(lines)


def tpu() -> str:
    """Return the programs of tpu.py for one v5e chip as a Markdown table. The ratio is to the dense network."""
    lines = [
        "| network | case | dtype | steps a dispatch | million cycles | against dense | without an estimate | "
        "MB moved | HBM, MB: arguments + temporaries | data and augmentation |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for network, name in NETWORKS.items():
        for suffix in ("", "_50_steps", "_float32"):
            file = RESULTS / f"tpu_{network}{suffix}.json"
            result: Any = json.loads(file.read_text()) if file.exists() else {"cases": []}
            for case in result["cases"]:
                offset, density = case["case"].split(":")[1:3]
                label = "dense" if offset == "none" else f"DCT, {100 * float(density):g} %"
                cycles, dense = case["megacycles"], result["cases"][0]["megacycles"]
                steps = result["command"]["steps_per_dispatch"]
                data = case["groups"]["data and augmentation"]["megacycles"] / cycles
                lines.append(
                    f"| {name} | {label} | {case['dtype']} | {steps} | {cycles:.3f} | "
                    f"{cycles / dense:.2f} | {len(case['without_estimate'])} | {case['bytes'] / 1e6:,.0f} | "
                    f"{case['hbm_arguments'] / 1e6:,.0f} + {case['hbm_temporaries'] / 1e6:,.0f} | {100 * data:.1f} % |"
                )
    return "\n".join(lines)


def tpu_layers() -> str:
    """Return what tpu_layers.py estimates for the layers of 0.1 % in bfloat16 as a Markdown table, in microseconds."""
    methods = ("dense layer", "autodiff", "on_support", "per_weight", "transform", "on_support_rows")
    head = ["kernel", "inputs", *(method if method == "dense layer" else f"`{method}`" for method in methods)]
    lines = [f"| {' | '.join(head)} |", f"| --- | --- |{' ---: |' * len(methods)}"]
    for network in ("vgg19", "linear"):
        for layer in json.loads((RESULTS / f"v5e_layers_{network}_0.001_bfloat16.json").read_text())["layers"]:
            shapes = ("×".join(map(str, layer[name])) for name in ("kernel", "inputs"))
            missing, seconds = layer["without_estimate"], layer["seconds"]
            cells = [f"{1e6 * seconds[name]:,.0f} ({missing[name]:,})" if name in seconds else "" for name in methods]
            lines.append(f"| {' | '.join((*shapes, *cells))} |")
    return "\n".join(lines)


def reading_images() -> str:
    """Return the ways of input.py as a Markdown table."""
    ways = json.loads((RESULTS / "input.json").read_text())["ways"]
    lines = ["| way | images a second |", "| --- | ---: |"]
    for way, figures in ways.items():
        if way != "memory":
            lines.append(f"| `{way}` | {figures['images'] / figures['seconds']:,.0f} |")
    return "\n".join(lines)


def saved_cases(name: str) -> list[dict[str, Any]]:
    return json.loads((RESULTS / f"{name}.json").read_text())["cases"]


def _kind(layer: dict[str, Any]) -> str:
    *size, in_features, _ = layer["kernel"]
    if not size:
        return "linear"
    is_depthwise = in_features == 1 and layer["inputs"][-1] > 1
    return "×".join(map(str, size)) + (" depthwise" if is_depthwise else "")


def _spent(way: str, layers: list[dict[str, Any]]) -> str:
    """Return the time of the layers as text: forward and backward in one program, in brackets each operation alone."""

    def total(seconds: Callable[[dict[str, Any]], float]) -> float:
        return 1000 * sum(layer["layers"] * seconds(layer) for layer in layers)

    whole = total(lambda layer: layer["seconds"]["dense layer" if way == "dense_layer" else layer["choice"]])
    apart = [total(lambda layer, o=operation: layer[way][o]) for operation in OPERATIONS]
    return f"{whole:,.0f} ({' + '.join(f'{time:,.0f}' for time in apart)})"


if __name__ == "__main__":
    print(
        table(),
        table("h100_", DENSITIES[1:]),
        profile(),
        versus_torch(saved_cases("h200_versus_torch_vgg19")),
        versus_torch_by_machine(),
        versus_torch_on_cpu(),
        masked_mlp(saved_cases("masked_mlp")),
        reading_images(),
        tpu(),
        tpu_layers(),
        sep="\n\n",
    )
