"""Find the files of experiments, by their path or by their name in the package, and name the directories of runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dctps_jax.errors import UserError
from dctps_jax.field import flat_fields
from dctps_jax.files import digest_of
from dctps_jax.runs.grid import former_name_of, name_of
from dctps_jax.runs.workdir import free_fields

# An installed package has the folder configs/ inside; in a checkout it lies beside the package.
PACKAGE = Path(__file__).parents[1]
FOLDERS = (PACKAGE / "configs", PACKAGE.parent / "configs")
LONGEST_NAME = 120  # bytes of a directory's name


def find_experiment(option: str, name: str, subfolder: str = "") -> Path:
    """Return the file that ``name`` stands for: ``configs/resnet50_cifar100.py`` or ``resnet50_cifar100``.

    An existing path comes first. Raises :class:`~dctps_jax.errors.UserError` if there is no such file; ``option`` is
    the name of the flag in its message.
    """
    folders = [folder / subfolder for folder in FOLDERS]
    for path in (Path(name), *(folder / f"{name}.py" for folder in folders)):
        if path.is_file():
            return path
    raise UserError(f"{option}: {name!r} does not exist; name a file or one of: {', '.join(names_in(subfolder))}")


def names_in(subfolder: str = "") -> list[str]:
    """Return the names of the package's sweeps, or of its experiments, recipes last."""
    names = {path.stem for folder in FOLDERS for path in (folder / subfolder).glob("[!_]*.py")}
    recipes = [] if subfolder else [f"recipes/{name}" for name in names_in("recipes")]
    return sorted(names) + recipes


def default_workdir(root: str, files: Sequence[str], overrides: Mapping[str, Any], config: Any) -> Path:
    """Return the directory of a run or a sweep whose command names none. The same command gets the same directory.

    The name of the directory joins the names of the experiment's ``files`` and the fields that the command sets,
    without those that a resumed run may change. A long name is cut and ends with a digest of the whole name. A
    directory that an earlier version made keeps its name.
    """
    free = free_fields(dict(flat_fields(config)))
    fields = {field: value for field, value in overrides.items() if field not in free}
    given = (file.partition(":") for file in files)  # FILE.py:PARAMETER
    parts = ["_".join(filter(None, [Path(file).stem, parameter.replace("/", "_")])) for file, _, parameter in given]
    workdir, former = (
        Path(root) / _shortened(",".join(filter(None, [*parts, name(fields)]))) for name in (name_of, former_name_of)
    )
    return former if former.exists() and not workdir.exists() else workdir


def _shortened(name: str) -> str:
    if len(name.encode()) <= LONGEST_NAME:
        return name
    return f"{name.encode()[:LONGEST_NAME].decode(errors='ignore')}-{digest_of(name)[:8]}"
