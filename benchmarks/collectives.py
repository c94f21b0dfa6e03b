"""What devices exchange in a training step: ``python benchmarks/collectives.py resnet50:none:1 resnet50:dct:0.001``.

A case is written as for ``train_step.py``. The script compiles its training program for eight devices that the CPU
pretends to have. From the program it reads how many exchanges there are, and how many bytes each device sends. ``--save
NAME`` writes the figures to benchmarks/results/NAME.json.
"""

import argparse
import os
import re
from collections import Counter
from typing import Any

DEVICES = 8
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"

import jax
from hlo import COLLECTIVES, Program, size_of
from record import describe_run, save
from tpu import compile_case


def exchanges(text: str) -> dict[str, dict[str, int]]:
    """Return how many exchanges of each kind a compiled program has, and their bytes, by kind."""
    number, size = Counter(), Counter()
    for executed in Program(text).instructions():
        instruction = executed.instruction
        if instruction.opcode.removesuffix("-start") not in COLLECTIVES:
            continue
        is_moments = any("normalization.py" in frame for frame in executed.frames)
        kind = "moments of BatchNorm" if is_moments else "gradients, loss and count"
        shapes = " ".join(re.findall(r"[a-z]+\d+\[[\d,]*\]", instruction.type))
        number[kind] += executed.times
        size[kind] += executed.times * size_of(shapes)
    return {kind: {"exchanges": number[kind], "bytes": size[kind]} for kind in number}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="+", help="e.g. resnet50:none:1 resnet50:dct:0.001")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the computation")
    parser.add_argument("--batch_size", type=int, default=128, help="of all devices together")
    parser.add_argument("--num_classes", type=int, default=10)
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--save", default="", help="write benchmarks/results/NAME.json")
    arguments = parser.parse_args()
    settings = vars(arguments) | {"images": 4096, "steps_per_dispatch": 1, "sparse_training": "static"}
    cases: list[dict[str, Any]] = []
    for name in arguments.cases:
        compiled, parameter_bytes = compile_case(name, jax.devices(), argparse.Namespace(**settings))
        found = exchanges(compiled.as_text())
        cases.append({"case": name, "parameter_bytes": parameter_bytes, "kinds": found})
        total = sum(of_kind["bytes"] for of_kind in found.values())
        print(f"{name}: {total:,} bytes a step of each device; {parameter_bytes:,} bytes are trained")
        for kind, of_kind in found.items():
            print(f"  {kind:26} {of_kind['exchanges']:5} exchanges {of_kind['bytes']:14,} bytes", flush=True)
        save(arguments.save, describe_run(arguments) | {"devices": DEVICES, "cases": cases})


if __name__ == "__main__":
    main()
