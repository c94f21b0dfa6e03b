"""Print the README's table of training steps: ``python benchmarks/readme_table.py``, out of benchmarks/results/step_*.json.

A row a network: the dense step in seconds, and how many times as fast, with which peak memory, a DCT plus Sparse step is.
"""

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
NETWORKS = {
    "resnet50": "ResNet50",
    "vgg19": "VGG19",
    "mobilenet_v2": "MobileNetV2",
    "fixup_resnet110": "Fixup-ResNet110",
    "lenet": "LeNet",
}
DENSITIES = ("0.01", "0.001", "0.0001")


def table() -> str:
    """Return the table as Markdown."""
    lines = [
        "| network, batch | dense, s a step | 1 % | 0.1 % | 0.01 % | peak memory, 0.1 % : dense |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for network, name in NETWORKS.items():
        file = RESULTS / f"step_{network}.json"
        if not file.exists():
            continue
        result = json.loads(file.read_text())
        cases = {case["case"]: case for case in result["cases"]}
        dense = cases[f"{network}:none:1"]
        sparse = [cases.get(f"{network}:dct:{density}") for density in DENSITIES]
        ratios = [
            f"{dense['wall_seconds_minimum'] / case['wall_seconds_minimum']:.2f}×" if case else "" for case in sparse
        ]
        peak = f"{sparse[1]['peak_bytes'] / dense['peak_bytes']:.2f}" if sparse[1] else ""
        lines.append(
            f"| {name}, {result['command']['batch_size']} | {dense['wall_seconds_minimum']:.3f} | {' | '.join(ratios)} | {peak} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
