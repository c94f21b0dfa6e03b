"""The cost of each kind of work on a platform: one JSON file for each machine, and for half precision on it.

A file holds the costs and their origin: machine, versions, date, which costs were fitted and which were set by hand,
and how far predictions are from measured times. ``benchmarks/fit_costs.py`` fits costs to the results of
``benchmarks/layers.py`` and writes such a file. The costs of a TPU are fitted to its compiler's estimates
(``benchmarks/tpu_layers.py``), not to measured times.
"""

import json
from pathlib import Path
from typing import NamedTuple

# The end of a platform's name if its inputs are of half precision.
HALF = ", half precision"
NAMES = {"cpu": "cpu", "gpu": "h100", f"tpu{HALF}": "v5e_bfloat16"}
FILES = {platform: Path(__file__).with_name(f"{name}.json") for platform, name in NAMES.items()}


class Costs(NamedTuple):
    """The costs of a platform in nanoseconds: of one core of a CPU, of a whole GPU, or of a chip of a TPU.

    Every predicted time is linear in these numbers. So they can be fitted by least squares.
    """

    product: float  # a multiply-add of a matrix product
    product_gradient: float  # a multiply-add of the product that is the gradient of a product's kernel
    convolution: float  # a multiply-add of a native convolution, forward or to its inputs
    convolution_gradient: float  # a multiply-add of the gradient of a native convolution's kernel
    narrow: float  # extra for a multiply-add of a native convolution, for one input channel; n channels: narrow / n
    depthwise: float  # a multiply-add of a sum of shifted inputs
    depthwise_gradient: float  # a multiply-add of the gradient of that sum's kernel
    move: float  # reading or writing a number of an activation
    weight: float  # making a weight of a kernel, or adding up its gradient
    tap: float  # both multiply-adds of the factored offset for one output and one position of the kernel
    transform: float  # a number of a fast transform, for each time that its length doubles
    pointwise_pair: float  # gathering, multiplying and adding what a trained weight of a 1×1 kernel sees at a position
    pair: float  # the same for a weight of a larger kernel
    large_pair: float  # extra for a pair where the gathered arrays do not fit the caches
    unfold: float  # copying a number of an activation to where a kernel sees it
    row: float  # laying out a number of an activation in rows, or back
    row_pair: float  # adding a number of a row, times a weight, to another row
    inner: float  # a multiply-add of the inner product of two rows
    loop: float  # fixed, for each step of a loop over the weights
    layer: float  # fixed, for each layer
    least_gain: float  # the least gain for which "auto" leaves "autodiff"; no part of a predicted time


def read_costs(file: Path) -> Costs:
    """Return the costs of a file that ``benchmarks/fit_costs.py`` wrote, or of the package."""
    return Costs(**json.loads(file.read_text())["nanoseconds"])
