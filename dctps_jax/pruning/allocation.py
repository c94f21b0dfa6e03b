"""How many weights each layer keeps: exact integer counts, computed from kernel shapes and a density."""

import logging
import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from dctps_jax.arguments import check_shapes, names_of, words
from dctps_jax.errors import UserError
from dctps_jax.pruning.layer_rules import LayerRules, Shapes, check_density, layer_rules
from dctps_jax.pruning.pattern import parse_pattern, pattern_counts
from dctps_jax.pruning.stacks import stack_counts

# Name → a function of a kernel's shape, (*kernel_size, in, out) or (in, out). It returns the share of the kept weights
# that the layer gets; the shares need not sum to anything.
ALLOCATIONS = {
    "uniform": lambda shape: math.prod(shape),  # the same density everywhere
    "epf": lambda shape: shape[-1],  # equal per filter: the same count for each output channel
    "epl": lambda shape: 1,  # equal per layer
    "erk": lambda shape: sum(shape),  # Erdős–Rényi kernel: density ∝ Σ dims / Π dims (Evci et al. 2020)
}


def allocate(
    shapes: Shapes,
    density: float,
    method: str,
    *,
    dense_layers: Iterable[str] = (),
    layer_densities: Mapping[str, float] | Iterable[tuple[str, float]] = (),
    pattern: str = "",
    stacks: Shapes = MappingProxyType({}),
) -> dict[str, int]:
    """Return how many weights each layer keeps, in the order of ``shapes``.

    The counts sum to exactly ``round(density · total)`` (Python's round), and no count exceeds the size of its layer. A
    method gives each layer a share of the total: ``uniform`` ∝ size, ``epf`` ∝ output channels, ``epl`` equal,
    ``erk`` ∝ sum of the kernel's dimensions. If a layer is full, the other layers share the rest in the same
    proportions. (The original drops the rest, or gives it to the last layer.) Fractions are rounded by the largest
    remainder.

    - ``shapes``: kernel shapes by path, HWIO or (in, out).
    - ``density``: kept ÷ all weights, in (0, 1].
    - ``dense_layers``: path patterns (``fnmatch``: "conv1", "layer1.*") of layers that keep all their weights.
    - ``layer_densities``: a density in (0, 1] for the layers that match a pattern. Their weights are part of the same
      total, so that the density of the whole network stays as asked. The first pattern that matches a layer counts, and
      those of ``dense_layers`` come first. A pattern that is in both has the density of ``layer_densities``.
    - ``pattern``: "N:M": of every M inputs in a row, each output keeps N weights (:mod:`dctps_jax.pruning.pattern`).
      ``density`` must be N/M then, and ``method`` "uniform". The layers that ``dense_layers`` and ``layer_densities``
      name have no pattern; their weights come on top of the density.
    - ``stacks``: the sizes of the axes in which ``nnx.vmap`` has stacked layers, by path. Each layer of a stack has the
      kernel shape in ``shapes``. The count of a path is for its whole stack, and each layer keeps the same number. The
      layers that are not stacked share the rest. If they cannot hold it, the network keeps fewer weights: by less than
      the number of layers of a stack.

    A layer left without any weight is reported in the log. Raises :class:`~dctps_jax.errors.UserError` for an unknown
    method, a density out of range, a pattern that matches nothing, fixed layers that need more than the total, a
    pattern that does not fit, or stacks so large that no weight is left.
    """
    counts = allocate_counts(shapes, density, method, layer_rules(dense_layers, layer_densities, pattern, stacks))
    report_empty_layers(counts, method, density)
    return counts


def allocate_counts(shapes: Shapes, density: float, method: str, rules: LayerRules) -> dict[str, int]:
    """Return what :func:`allocate` returns, without a warning in the log."""
    if not isinstance(method, str) or method not in ALLOCATIONS:
        raise UserError(f"there is no allocation {words(method)}; choose one of: {', '.join(ALLOCATIONS)}")
    check_density(density, "density")
    check_shapes("shapes", shapes)
    check_shapes("stacks", rules.stacks)
    layers, sizes = {path: rules.num_layers(path) for path in shapes}, rules.sizes(shapes)
    fixed = rules.fixed_counts(shapes)
    if found := parse_pattern(rules.pattern, density, method):
        if rules.stacks:
            raise UserError(
                f"pattern is {rules.pattern!r}, and nnx.vmap has stacked {names_of(rules.stacks)}; a pattern is for "
                "layers that are not stacked: keep them in an nnx.List"
            )
        return pattern_counts(shapes, found, fixed)
    total = round(float(density) * sum(sizes.values()))  # not in the density's own type, e.g. float16
    free = {path: sizes[path] for path in sizes if path not in fixed}
    remaining = total - sum(fixed.values())
    if remaining < 0 or remaining > sum(free.values()):
        raise UserError(
            f"density {density} keeps {total} weights, but the layers named in dense_layers and layer_densities take "
            f"{sum(fixed.values())} and the others hold {sum(free.values())}; change the density or those layers"
        )
    shares = {path: layers[path] * float(ALLOCATIONS[method](shapes[path])) for path in free}
    targets = _fill(shares, free, remaining)
    stacked = {path: targets[path] for path in free if layers[path] > 1}
    single = {path: size for path, size in free.items() if path not in stacked}
    counts = fixed | stack_counts(stacked, sizes, layers, remaining, sum(single.values()))
    if stacked:  # the other layers share what the stacks leave
        remaining = min(remaining - sum(counts[path] for path in stacked), sum(single.values()))
        targets = _fill({path: shares[path] for path in single}, single, remaining)
    counts |= _apportion({path: targets[path] for path in single}, single, remaining)
    if total and not any(counts.values()):
        raise UserError(
            f"density {density:g} keeps {total} weights, fewer than the layers of each stack, which keep equally many; "
            "choose a higher density"
        )
    return {path: counts[path] for path in shapes}


def report_empty_layers(counts: Mapping[str, int], method: str, density: float) -> None:
    """Write a warning to the log if layers keep no weight."""
    empty = [path for path, count in counts.items() if count == 0]
    if empty:
        logging.getLogger("dctps_jax").warning(
            "%s at density %g leaves %d of %d layers without any weight: %s",
            method,
            density,
            len(empty),
            len(counts),
            ", ".join(empty),
        )


def trains_all_weights(method: str, density: float, layer_densities: Any) -> bool:
    """Return whether these fields of ``config.pruning`` ask for a dense network."""
    return method != "from_run" and density == 1 and not layer_densities


def density_asked(method: str, density: float, rewind_epoch: int) -> float | None:
    """Return the density that these fields of ``config.pruning`` ask for; None for the masks of another run."""
    return None if method == "from_run" and rewind_epoch < 0 else density


def _fill(shares: Mapping[str, float], sizes: Mapping[str, int], total: int) -> dict[str, float]:
    """Split ``total`` in proportion to ``shares``. A layer gets at most its size; the others share the rest."""
    targets: dict[str, float] = {}
    open_layers = dict(shares)
    while open_layers:
        factor = (total - sum(targets.values())) / sum(open_layers.values())
        full = [path for path, share in open_layers.items() if share * factor >= sizes[path]]
        if not full:
            return targets | {path: share * factor for path, share in open_layers.items()}
        for path in full:
            targets[path] = float(sizes[path])
            del open_layers[path]
    return targets


def _apportion(targets: Mapping[str, float], sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Round the targets to integers that sum to ``total``: floors, then one more for the largest remainders."""
    # A target that float arithmetic left a hair below an integer counts as that integer.
    counts = {path: min(math.floor(target + 1e-6), sizes[path]) for path, target in targets.items()}
    missing = total - sum(counts.values())
    room = [path for path in targets if counts[path] < sizes[path]]
    remainders = np.array([targets[path] - counts[path] for path in room])
    for position in np.argsort(-remainders, kind="stable")[:missing]:
        counts[room[position]] += 1
    return counts
