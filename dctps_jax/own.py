"""Functions of a user's own package, named by import path: ``my_package.networks:build``."""

import contextlib
import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from dctps_jax.errors import UserError, first_line
from dctps_jax.field import Allowed


def is_import_path(name: Any) -> bool:
    """Return whether ``name`` is written as the import path of a function: a module, a colon, a name in it."""
    return isinstance(name, str) and re.fullmatch(r"(?!\d)\w+(\.(?!\d)\w+)*:(?!\d)\w+(\.(?!\d)\w+)*", name) is not None


IMPORT_PATH = Allowed(is_import_path, "the import path of a function of yours, as my_package.my_module:my_function")


def is_option(value: Any) -> bool:
    """Return whether a value can stand in a config: a number, a text, True, False, None, or a tuple of these."""
    return value is None or isinstance(value, str | int | float) or (is_sequence(value) and all(map(is_option, value)))


def is_sequence(value: Any) -> bool:
    return isinstance(value, tuple | list)


def as_options(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of a config as arguments, with tuples for the lists that JSON has."""

    def as_tuples(value: Any) -> Any:
        return tuple(map(as_tuples, value)) if is_sequence(value) else value

    return {name: as_tuples(value) for name, value in pairs}


def find_function(field: str, path: str) -> Callable[..., Any]:
    """Import the function that a config field names; the folder that the program was started in is looked in, too.

    Raises :class:`~dctps_jax.errors.UserError` where there is none, and where its module cannot be imported.
    """
    module_name, _, name = path.partition(":")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)
    with blaming(f"{field} is {path!r}, whose module cannot be imported"):
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise
            raise UserError(
                f"{field} is {path!r}, but there is no module {error.name!r}; start the program in the folder that "
                "holds it, or install it"
            ) from error
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise UserError(f"{field} is {path!r}, but {module_name} has no function {name!r}; name one that it has")
    return found


def call(field: str, path: str, offered: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """Call a function of the user's with those of the arguments ``offered`` that it takes, and with all ``options``.

    Raises :class:`~dctps_jax.errors.UserError` for an option that it does not take, and where it fails.
    """
    function = find_function(field, path)
    accepted = check_options(field, path, options)
    taken = {name: value for name, value in offered.items() if accepted is None or name in accepted}
    with blaming(f"{field} is {path!r}, which fails"):
        return function(**taken, **options)


def check_options(field: str, path: str, options: Iterable[str]) -> list[str] | None:
    """Return the names of the arguments that a function takes, None for any; an option that is none is a UserError."""
    function = find_function(field, path)
    # nnx hides the arguments of a class behind those of its metaclass.
    parameters = inspect.signature(function.__init__ if inspect.isclass(function) else function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    accepted = [parameter.name for parameter in parameters if parameter.name != "self"]
    for option in options:
        if option not in accepted:
            raise UserError(
                f"{field} is {path!r}, which has no argument {option!r}; its arguments are: {', '.join(accepted)}"
            )
    return accepted


@contextlib.contextmanager
def blaming(what: str) -> Iterator[None]:
    """Inside, an error of the user's code becomes a UserError: ``what``, and where it was raised."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # the user's code may raise anything
        at = traceback.extract_tb(error.__traceback__)[-1]
        file, line = (error.filename, error.lineno) if isinstance(error, SyntaxError) else (at.filename, at.lineno)
        raise UserError(
            f"{what} ({type(error).__name__}: {first_line(error)}, in line {line} of {file}); mend it, DCTPS_DEBUG=1 "
            "shows the traceback"
        ) from error
