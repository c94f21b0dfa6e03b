"""Predict how training scales over TPU v5e chips: ``python benchmarks/scaling.py``. See docs/scaling.md.

The FLOPs and bytes of a step come from ``results/tpu_resnet50_imagenet.json`` (benchmarks/tpu.py), a program compiled
for 16 chips. The speeds of the chips and their networks are published figures, but the times of messages between pods
are assumed. Nothing here is measured on a TPU.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).parent / "results" / "tpu_resnet50_imagenet.json"
HERTZ = 1.5e9
# Google Cloud, "TPU v5e": 51.2 TB/s of all-reduce in a pod of 256 chips, and 6.4 Tbit/s from a pod to others.
ALL_REDUCE_BYTES = 51.2e12 / 256
POD_BYTES = 6.4e12 / 8
POD_CHIPS = 256


class Latency(NamedTuple):
    """The time of a message, in seconds: over one hop to the next chip, and from one pod to another."""

    hop: float
    pod: float


# A hop takes 1 µs in theory, and 8 µs were measured for three hops: Austin et al. 2025, "How to Scale Your Model",
# chapter 3. No figure is published for messages between pods; these are assumed.
LATENCIES = (Latency(1e-6, 20e-6), Latency(8e-6 / 3, 100e-6))


class Slice(NamedTuple):
    """Chips on a square of links; several squares of 16 × 16 are pods.

    The links along a side form a ring only if the side has 16 chips.
    """

    chips: int

    @property
    def pods(self) -> int:
        return max(1, self.chips // POD_CHIPS)

    @property
    def side(self) -> int:
        return round((self.chips / self.pods) ** 0.5)

    @property
    def is_ring(self) -> bool:
        return self.side == 16

    @property
    def hops(self) -> int:
        """Hops of an all-reduce: along both sides, to collect the sum and to hand it out."""
        along_a_side = self.side // 2 if self.is_ring else self.side - 1
        return 4 * along_a_side


def exchange_seconds(num_bytes: float, slice_: Slice, latency: Latency) -> float:
    """Return the seconds that all chips take to sum an array of ``num_bytes``.

    Within a pod the time is that of the bytes or that of the hops, whichever is longer. Then the pods sum their
    results: each sends and receives everything except its own share, twice.
    """
    rate = ALL_REDUCE_BYTES if slice_.is_ring else ALL_REDUCE_BYTES / 2  # without rings, half as much
    seconds = max(2 * num_bytes / rate, slice_.hops * latency.hop)
    if slice_.pods > 1:
        between = 2 * (slice_.pods - 1) / slice_.pods * num_bytes / POD_BYTES
        seconds += max(between, 2 * latency.pod)
    return seconds


class Step(NamedTuple):
    """The seconds of a training step. Computing and exchanging do not overlap."""

    compute: float
    gradients: float
    moments: float

    @property
    def seconds(self) -> float:
        return sum(self)

    @property
    def efficiency(self) -> float:
        return self.compute / self.seconds


def predict(case: dict[str, Any], slice_: Slice, latency: Latency) -> Step:
    """Return the step of a compiled case. Its largest exchange has the gradients, the others moments of BatchNorm."""
    *moments, gradients = sorted(exchange_seconds(size, slice_, latency) for size in sorted(case["collective_bytes"]))
    return Step(case["megacycles"] * 1e6 / HERTZ, gradients, sum(moments))


def table() -> str:
    """Return the predictions as Markdown."""
    dense, sparse = json.loads(FILE.read_text())["cases"]
    lines = [
        "| chips | a hop, µs | dense: ms a step | computing | 0.1 %: ms a step | computing | faster by | "
        "ms of BatchNorm's exchanges | ms of gradients, dense | 0.1 % |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for chips in (16, 256, 1024):
        for latency in LATENCIES:
            first, second = (predict(case, Slice(chips), latency) for case in (dense, sparse))
            steps = " | ".join(f"{1e3 * step.seconds:.2f} | {100 * step.efficiency:.1f} %" for step in (first, second))
            exchanges = (first.moments, first.gradients, second.gradients)
            gain = 100 * (first.seconds / second.seconds - 1)
            lines.append(
                f"| {chips:,} | {1e6 * latency.hop:.1f} | {steps} | {gain:.1f} % | "
                f"{' | '.join(f'{1e3 * seconds:.2f}' for seconds in exchanges)} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    print(table())
