"""The files of benchmarks/results/: what was measured, by which command, when, on which machine."""

import argparse
import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

from dctps_jax.runs.summary import environment

RESULTS = Path(__file__).parent / "results"


def describe_run(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "command": vars(arguments),
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} × {processor()}",
        "environment": environment(),
    }


def save(name: str, result: dict[str, Any]) -> None:
    """Write ``benchmarks/results/NAME.json``; do nothing if the name is empty."""
    if name:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


def processor() -> str:
    """Return the name of the processor, if the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        if cpuinfo.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()
