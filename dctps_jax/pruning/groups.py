"""The groups of weights that compete with each other for a place in the support, and how many of each stay."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from dctps_jax.arguments import names_of
from dctps_jax.pruning.allocation import allocate_counts
from dctps_jax.pruning.layer_rules import LayerRules, Shapes
from dctps_jax.pruning.pattern import Pattern, check_room_in_groups, check_scores, parse_pattern, top_of_groups
from dctps_jax.pruning.random import check_room
from dctps_jax.pruning.schedules import keep_counts
from dctps_jax.pruning.selection import Masks, top_k_global
from dctps_jax.pruning.stacks import equal_in_stacks


class Groups(NamedTuple):
    """Which weights compete, and how many stay after each step.

    - ``of_layers``: the weights of some layers together, one or several: their paths, and the counts after each step.
    - ``pattern``, ``patterned``, ``in_pattern``: in these layers every M inputs of an output are a group, with these
      counts after each step.
    """

    of_layers: list[tuple[list[str], list[int]]]
    pattern: Pattern | None
    patterned: list[str]
    in_pattern: list[int]
    stacks: Shapes = MappingProxyType({})

    def check_room(self, within: Mapping[str, np.ndarray]) -> None:
        """Raise :class:`~dctps_jax.errors.UserError` where the masks ``within`` keep fewer weights than shall stay."""
        for paths, counts in self.of_layers:
            kept = sum(int(within[path].sum()) for path in paths)
            spare = max(math.prod(self.stacks.get(path, ())) for path in paths) - 1  # a stack may keep so many less
            check_room(kept + spare, counts[-1], names_of(paths))
        if self.pattern:
            check_room_in_groups({path: within[path] for path in self.patterned}, self.pattern)

    def select(
        self,
        scores: Mapping[str, np.ndarray],
        step: int,
        allowed: Mapping[str, np.ndarray] = MappingProxyType({}),
        *,
        allow_zero: bool = False,
    ) -> Masks:
        """Return masks of the weights with the highest scores of each group, as many as stay after ``step``.

        ``allowed`` are masks of the weights that may stay; stacks need them. Unless ``allow_zero``, scores of 0 that
        would stay after the last step are refused: they do not say which.
        """
        masks: Masks = {}
        for paths, counts in self.of_layers:
            may_be_zero = allow_zero or step < len(counts) - 1
            chosen = top_k_global({path: scores[path] for path in paths}, counts[step], allow_zero=may_be_zero)
            masks |= equal_in_stacks(scores, chosen, allowed, self.stacks) if self.stacks else chosen
        if self.pattern:
            if not allow_zero:
                check_scores({path: scores[path] for path in self.patterned})
            for path in self.patterned:
                masks[path] = top_of_groups(scores[path], self.in_pattern[step], self.pattern)
        return {path: masks[path] for path in scores}


def make_groups(
    shapes: Shapes,
    density: float,
    rules: LayerRules,
    *,
    num_steps: int = 1,
    schedule: str = "exp",
    rounds: str = "kept",
    scope: str = "global",
    allocation: str | None = None,
) -> Groups:
    """Return the groups of a network with these kernel ``shapes``; :func:`dctps_jax.pruning.prune` has the arguments.

    A layer whose count is given is a group; all other layers are one group. With a pattern every M inputs of an output
    are one, in the layers without a density of their own.
    """
    sizes, fixed = rules.sizes(shapes), rules.fixed_counts(shapes)
    patterned, in_pattern = [], []
    if found := parse_pattern(rules.pattern, density, allocation):
        patterned = [path for path in shapes if path not in fixed]
        in_pattern = keep_counts(found.of, found.keep / found.of, num_steps, schedule, rounds)
    is_allocated = allocation or scope == "layer" or found
    final = allocate_counts(shapes, density, allocation or "uniform", rules)
    alone = [path for path in (final if is_allocated else fixed) if path not in patterned]
    together = [path for path in shapes if path not in alone and path not in patterned]
    of_layers: list[tuple[list[str], list[int]]] = []
    for paths in ([together] if together else []) + [[path] for path in alone]:
        total = sum(sizes[path] for path in paths)
        group_density = density if not alone else sum(final[path] for path in paths) / total
        of_layers.append((paths, keep_counts(total, group_density, num_steps, schedule, rounds)))
    return Groups(of_layers, found, patterned, in_pattern, rules.stacks)
