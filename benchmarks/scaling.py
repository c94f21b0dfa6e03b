"""Predict how training scales over TPU v5e chips: ``python benchmarks/scaling.py``. See docs/scaling.md.

What is computed and exchanged in a step is read from ``results/tpu_resnet50_imagenet.json`` (benchmarks/tpu.py), a
program compiled for 16 chips. What the chips and their networks do are published figures, but for one that is assumed.
Nothing here is measured on a TPU.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).parent / "results" / "tpu_resnet50_imagenet.json"
HERTZ = 1.5e9
# Google Cloud, "TPU v5e": 51.2 TB/s of all-reduce in a pod of 256 chips, and 6.4 Tbit/s from a pod to others.
ALL_REDUCE_BYTES = 51.2e12 / 256
POD_BYTES = 6.4e12 / 8
POD_CHIPS = 256
# Austin et al. 2025, "How to Scale Your Model", chapter 3: a hop takes 1 µs in theory; 8 µs were measured for three.
HOP_SECONDS = (1e-6, 8e-6 / 3)
# Assumed: no figure is published of how long a message takes from one pod to another.
POD_SECONDS = 50e-6


class Slice(NamedTuple):
    """Chips on a square of links; several squares of 16 × 16 are pods. Only a side of 16 is closed to a ring."""

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


def exchange_seconds(num_bytes: float, slice_: Slice, hop_seconds: float) -> float:
    """Return the seconds that all chips take to sum an array of ``num_bytes``.

    Within a pod it takes what its links take for the bytes or for the hops, whichever is longer. Then the pods sum
    what they have: each sends and receives all of it but its own share, twice.
    """
    rate = ALL_REDUCE_BYTES if slice_.is_ring else ALL_REDUCE_BYTES / 2  # open sides carry half as much
    seconds = max(2 * num_bytes / rate, slice_.hops * hop_seconds)
    if slice_.pods > 1:
        between = 2 * (slice_.pods - 1) / slice_.pods * num_bytes / POD_BYTES
        seconds += max(between, 2 * POD_SECONDS)
    return seconds


def efficiency(case: dict[str, Any], slice_: Slice, hop_seconds: float, joins_moments: bool = True) -> float:
    """Return the part of a step in which chips compute: nothing is exchanged meanwhile.

    Without ``joins_moments`` only the last exchange counts, the gradients: as if no BatchNorm joined its moments.
    """
    compute = case["megacycles"] * 1e6 / HERTZ
    exchanged = case["collective_bytes"] if joins_moments else [max(case["collective_bytes"])]
    return compute / (compute + sum(exchange_seconds(size, slice_, hop_seconds) for size in exchanged))


def table() -> str:
    """Return the predictions as Markdown."""
    dense, sparse = json.loads(FILE.read_text())["cases"]
    lines = [
        "| chips | dense | 0.1 % | dense, gradients alone | 0.1 %, gradients alone |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for chips in (16, 256, 1024):
        cells = [
            " to ".join(sorted({f"{100 * efficiency(case, Slice(chips), hop, joins):.1f}" for hop in HOP_SECONDS}))
            for joins in (True, False)
            for case in (dense, sparse)
        ]
        lines.append(f"| {chips:,} | {' % | '.join(cells)} % |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
