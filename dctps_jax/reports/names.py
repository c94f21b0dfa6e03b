"""Short names of runs, by which figures and tables tell them apart."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

Key = TypeVar("Key")


def names_of_places(places: Sequence[Path]) -> list[str]:
    """Return the parts of the paths of runs, or of their files, that differ. Different places get different names.

    In names such as ``model.offset=dct,seed=1`` the fields that all runs share are left out.
    """
    places = [place.resolve() for place in places]
    # A run keeps the name of its directory.
    above = Path(os.path.commonpath([(place.parent if place.is_file() else place).parent for place in places]))
    return without_common_fields([str(place.relative_to(above)) for place in places])


def without_common_fields(names: Sequence[str]) -> list[str]:
    """Return comma-separated names without the parts that all share, if the rest tells them apart."""
    parts = [name.split(",") for name in names]
    common = set.intersection(*map(set, parts)) if parts else set()
    short = [",".join(part for part in of_name if part not in common) for of_name in parts]
    return short if all(short) and len(set(short)) == len(set(names)) else list(names)


def names_of_groups(groups: Mapping[Key, Sequence[str]]) -> dict[Key, str]:
    """Return a name for each group of runs: that of its first run, and how many others there are."""
    firsts = without_common_fields([members[0] for members in groups.values()])
    return {
        key: first + (f" and {len(members) - 1} more" if len(members) > 1 else "")
        for (key, members), first in zip(groups.items(), firsts, strict=True)
    }
