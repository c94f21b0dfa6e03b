"""Find the files of experiments: by their path, or by their name among those that the package brings."""

from pathlib import Path

from dctps_jax.errors import UserError

# An installed package has the folder configs/ inside; in a checkout it lies beside the package.
PACKAGE = Path(__file__).parents[1]
FOLDERS = (PACKAGE / "configs", PACKAGE.parent / "configs")


def find_experiment(option: str, name: str, subfolder: str = "") -> Path:
    """Return the file that ``name`` stands for: ``configs/resnet50_cifar100.py`` or ``resnet50_cifar100``.

    A path comes first. ``option`` names the flag in the message of the :class:`~dctps_jax.errors.UserError`, raised
    where there is no such file.
    """
    folders = [folder / subfolder for folder in FOLDERS]
    for path in (Path(name), *(folder / f"{name}.py" for folder in folders)):
        if path.is_file():
            return path
    known = sorted({path.stem for folder in folders for path in folder.glob("[!_]*.py")})
    raise UserError(f"{option}: {name!r} does not exist; name a file or one of: {', '.join(known)}")
