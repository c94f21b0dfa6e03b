"""The runs of a sweep: all combinations of the values that a grid gives to fields, and the directory of each run."""

import copy
import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dctps_jax.config import check_all_is_read, check_config, check_names, check_type, resolve, unknown_field
from dctps_jax.defaults import FIELDS
from dctps_jax.errors import UserError
from dctps_jax.field import flat_fields
from dctps_jax.runs.workdir import ADDED_FIELDS, GROWING_FIELDS, identity, name_of_run, read_config


class GridPoint(NamedTuple):
    """One point of a grid: its directory's name, the fields that it sets, its whole config and its number of epochs."""

    name: str
    fields: dict[str, Any]
    config: dict[str, Any]
    epochs: int

    def options(self) -> list[str]:
        """Return what sets its fields on the command line of ``train.py``."""
        return [f"--config.{field}={value}" for field, value in self.fields.items()]


def plan_runs(config: Any, grids: Any) -> list[GridPoint]:
    """Return the points of the grids: all combinations of each grid's values, without repetitions.

    A grid maps dotted fields to lists of values. Every point's config is checked. Raises
    :class:`~dctps_jax.errors.UserError` for anything that is no grid, fields that do not exist and values not allowed.
    """
    points: list[GridPoint] = []
    check_names(config)
    for grid in _checked(grids):
        for values in itertools.product(*grid.values()):
            fields = dict(zip(grid, values, strict=True))
            for field, value in fields.items():
                check_type(field, value)
            single = copy.deepcopy(config)  # with its references, which follow the fields that are set
            single.update_from_flattened_dict(fields)
            single = resolve(single)
            check_config(single, check_devices=False)
            check_all_is_read(single)
            point = GridPoint(
                name_of(fields), fields, json.loads(single.to_json()), single.num_epochs * single.num_seeds
            )
            if not any(point.config == other.config for other in points):
                points.append(point)
    return _with_names(points)


def _with_names(points: Sequence[GridPoint]) -> list[GridPoint]:
    """Return the points with a name for each, longer ones where values differ in no letter: "fc" and "fc*"."""
    count = Counter(point.name for point in points)
    points = [
        point if count[point.name] == 1 else point._replace(name=former_name_of(point.fields)) for point in points
    ]
    for name, number in Counter(point.name for point in points).items():
        if number > 1:
            raise UserError(f"the sweep has two runs that would be called {name}; choose values that differ in letters")
    return points


def _checked(grids: Any) -> list[dict[str, Sequence[Any]]]:
    """Return the grids as a list, each with fields that exist and lists of values."""
    checked: list[Any] = list(grids) if isinstance(grids, list | tuple) and grids else [grids]
    for grid in checked:
        _check_grid(grid)
    return checked


def _check_grid(grid: Any) -> None:
    if not isinstance(grid, Mapping) or not grid:
        raise UserError(
            f"the sweep holds {grid!r}; it must be grids of fields and values: {{'pruning.density': (0.1, 0.01)}}"
        )
    for field, values in grid.items():
        if field not in FIELDS:
            raise UserError(unknown_field(field))
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise UserError(f"the sweep has {values!r} for config.{field}; it must be a list of values, e.g. (0, 1, 2)")


def name_of(fields: Mapping[str, Any]) -> str:
    """Return the name of a directory for a run that sets some fields of its config: "num_epochs=3,seed=1".

    Characters that a name should not have are a hyphen between the others: "model.options=width-4".
    """
    return ",".join(f"{field}={_as_name(value)}" for field, value in sorted(fields.items()))


def former_name_of(fields: Mapping[str, Any]) -> str:
    """Return the name that earlier versions gave: each of those characters is an underscore."""
    return ",".join(f"{field}={_as_former_name(value)}" for field, value in sorted(fields.items()))


def _as_name(value: Any) -> str:
    return re.sub(r"[^\w.+-]+", " ", str(value)).strip().replace(" ", "-") or "_"


def _as_former_name(value: Any) -> str:
    return re.sub(r"[^\w.+-]", "_", str(value)) or "_"


def in_existing_folders(points: Sequence[GridPoint], workdir: Path) -> list[GridPoint]:
    """Return the points of a sweep, each by the name of the directory below ``workdir`` that is of the same run.

    A sweep with more fields gives its directories longer names; runs of an earlier sweep keep theirs, also when they
    are to grow. A directory whose name sets the number of epochs or seeds does not grow.
    """
    exact: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    growing: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for file in sorted(workdir.glob("*/config.json")):
        name, config = file.parent.name, ADDED_FIELDS | dict(flat_fields(read_config(file.parent)))
        grows = not any(part.startswith(tuple(f"{field}=" for field in GROWING_FIELDS)) for part in name.split(","))
        # A run has the type that it began with in its config, where the sweep may leave it open.
        for same in (config, config | {"model.dtype": "auto"}):
            exact[identity(same)].append((name, same))
            if grows:
                growing[name_of_run(same)].append((name, same))
    found = []
    for point in points:
        name = point.name
        if not (workdir / name).exists():
            # Fields that do not count for the identity may be varied, e.g. execution.method.
            asked = {field: value for field, value in flat_fields(point.config) if field in point.fields}
            candidates = exact[identity(point.config)] + growing[name_of_run(point.config)]
            name = next((name for name, config in candidates if asked.items() <= config.items()), name)
        found.append(point._replace(name=name))
    return found
