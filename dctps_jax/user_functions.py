"""Functions of a user's own package, named by import path: ``my_package.networks:build``."""

import contextlib
import importlib
import inspect
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dctps_jax.errors import UserError, did_you_mean, first_line
from dctps_jax.field import Allowed


def is_import_path(name: Any) -> bool:
    """Return whether ``name`` is written as an import path of a function: a module, a colon, a name in the module."""
    return isinstance(name, str) and re.fullmatch(r"(?!\d)\w+(\.(?!\d)\w+)*:(?!\d)\w+(\.(?!\d)\w+)*", name) is not None


IMPORT_PATH = Allowed(is_import_path, "the import path of a function of yours, as my_package.my_module:my_function")


def is_option(value: Any) -> bool:
    """Return whether a value can stand in a config: a number, a text, True, False, None, or a tuple of these."""
    return value is None or isinstance(value, str | int | float) or (is_sequence(value) and all(map(is_option, value)))


def is_sequence(value: Any) -> bool:
    return isinstance(value, tuple | list)


def as_options(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of a config as arguments. The lists that JSON has become tuples."""

    def as_tuples(value: Any) -> Any:
        return tuple(map(as_tuples, value)) if is_sequence(value) else value

    return {name: as_tuples(value) for name, value in pairs}


def find_function(field: str, path: str) -> Callable[..., Any]:
    """Import the function that a config field names. The folder where the program was started is searched as well.

    Raises :class:`~dctps_jax.errors.UserError` if there is no such function, or its module cannot be imported.
    """
    module_name, _, name = path.partition(":")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)
    with blaming(f"{field} is {path!r}, whose module cannot be imported", path):
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise
            raise UserError(
                f"{field} is {path!r}, but there is no module {error.name!r} here, in {folder}; start the program in "
                f"the folder that holds {module_name.replace('.', '/')}.py, or install the module"
            ) from error
    names = [name for name, value in vars(found).items() if callable(value)]
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        hint = did_you_mean(name, names)
        raise UserError(f"{field} is {path!r}, but {module_name} has no function {name!r}{hint}; name one that it has")
    return found


def call(field: str, path: str, offered: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> Any:
    """Call a user's function. Pass all ``options``, and each argument of ``offered`` that its signature names.

    ``options`` are the options of a network in the config; None for other functions.

    Raises :class:`~dctps_jax.errors.UserError` for an option that the function does not take, for an argument that it
    needs and does not get, and if it fails.
    """
    function = find_function(field, path)
    given = {**offered, **(options or {})}
    accepted = check_options(field, path, options or {})
    for parameter in _parameters(function):
        if is_needed(parameter) and (parameter.name not in given or parameter.kind is parameter.POSITIONAL_ONLY):
            remedy = "a default value" if options is None else "a default value, or a value in config.model.options"
            raise UserError(
                f"{field} is {path!r}, whose argument {parameter.name!r} gets no value; the function is called by "
                f"name, with {', '.join(offered)} only: give {parameter.name!r} {remedy}"
            )
    taken = {name: value for name, value in given.items() if accepted is None or name in accepted}
    with blaming(f"{field} is {path!r}, which fails", path):
        return function(**taken)


def check_options(field: str, path: str, options: Iterable[str]) -> list[str] | None:
    """Return the names of a function's arguments, or None if it takes any. Raise UserError for an option it lacks."""
    parameters = _parameters(find_function(field, path))
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    accepted = [parameter.name for parameter in parameters if parameter.kind in by_name]
    for option in options:
        if option not in accepted:
            arguments = f"its arguments are: {', '.join(accepted)}" if accepted else "it has none"
            raise UserError(f"{field} is {path!r}, which has no argument {option!r}; {arguments}")
    return accepted


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters of a function, or of the class that stands for one."""
    if not inspect.isclass(function):
        return list(inspect.signature(function).parameters.values())
    if function.__init__ is object.__init__:
        return []
    # nnx hides the arguments of a class behind the arguments of its metaclass. The first one is self.
    return list(inspect.signature(function.__init__).parameters.values())[1:]


def is_needed(parameter: inspect.Parameter) -> bool:
    """Return whether a function cannot be called without this argument."""
    collects = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and not collects


@contextlib.contextmanager
def blaming(what: str, path: str) -> Iterator[None]:
    """Inside, an error in the user's code becomes a UserError: ``what``, and the user's line that caused it.

    ``path`` is the import path of the function that is called.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # the user's code may raise anything
        file, line = _place(error, path)
        reason = f"{type(error).__name__}: {first_line(error).rstrip('.')}"
        raise UserError(
            f"{what} ({reason}, in line {line} of {file}); mend it, DCTPS_DEBUG=1 shows the traceback"
        ) from error


def _place(error: Exception, path: str) -> tuple[str | None, int | None]:
    """Return file and line of an error: the last ones in the user's code, or else the place where it was raised."""
    if isinstance(error, SyntaxError):
        return error.filename, error.lineno
    frames = [(frame.f_code.co_filename, line, frame) for frame, line in traceback.walk_tb(error.__traceback__)]
    package = path.partition(":")[0].partition(".")[0]
    own = [
        (file, line)
        for file, line, frame in frames
        if frame.f_globals.get("__name__", "").partition(".")[0] == package or not _is_installed(file)
    ]
    return own[-1] if own else frames[-1][:2]


def _is_installed(file: str) -> bool:
    """Return whether a file is this package's, Python's or an installed package's."""
    places = sysconfig.get_paths()
    folders = [Path(__file__).parent, *(places[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))]
    return file.startswith("<") or any(Path(file).is_relative_to(folder) for folder in folders)
