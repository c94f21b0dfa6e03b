"""What a user fixes for some layers before the other weights are divided among the layers."""

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from dctps_jax.arguments import is_number, pairs, patterns, words
from dctps_jax.errors import UserError

Shapes = Mapping[str, Sequence[int]]


class LayerRules(NamedTuple):
    """What is given for single layers, and not computed from the density of the network.

    - ``densities``: by patterns of paths, the densities of the layers that match. The first match counts.
    - ``pattern``: "N:M" for all other layers, or "".
    - ``stacks``: the sizes of the axes of stacked layers, by path.
    """

    densities: Mapping[str, float] = MappingProxyType({})
    pattern: str = ""
    stacks: Shapes = MappingProxyType({})

    def num_layers(self, path: str) -> int:
        """Return 1, or the number of layers of a stack."""
        return math.prod(self.stacks.get(path, ()))

    def sizes(self, shapes: Shapes) -> dict[str, int]:
        """Return how many weights each path has, all layers of a stack together."""
        return {path: self.num_layers(path) * math.prod(shape) for path, shape in shapes.items()}

    def fixed_counts(self, shapes: Shapes) -> dict[str, int]:
        """Return how many weights the layers keep that have a density of their own, by path.

        Raises :class:`~dctps_jax.errors.UserError` for a density out of range, and where no layer matches.
        """
        fixed: dict[str, int] = {}
        for paths, density in self.densities.items():
            check_density(density, f"the density of layers {paths!r}")
            matching = fnmatch.filter(shapes, paths)
            if not matching:
                raise UserError(
                    f"dense_layers and layer_densities: no layer matches {paths!r}; the layers are: {', '.join(shapes)}"
                )
            for path in matching:
                fixed.setdefault(path, self.num_layers(path) * round(float(density) * math.prod(shapes[path])))
        return fixed


def layer_rules(
    dense_layers: Iterable[str],
    layer_densities: Mapping[str, float] | Iterable[tuple[str, float]],
    pattern: str = "",
    stacks: Shapes = MappingProxyType({}),
) -> LayerRules:
    """Return the rules of these arguments of :func:`~dctps_jax.pruning.allocation.allocate`."""
    densities = dict.fromkeys(patterns("dense_layers", dense_layers), 1.0)
    return LayerRules(densities | pairs("layer_densities", layer_densities), pattern, stacks)


def check_density(density: float, field: str) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` unless ``density`` is a number in (0, 1]; ``field`` names it."""
    if not is_number(density) or not 0 < float(density) <= 1:
        raise UserError(
            f"{field} is {words(density)}; it must be a number above 0 and at most 1, e.g. 0.01 to keep 1 % of the "
            "weights"
        )
