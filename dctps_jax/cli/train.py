"""``train.py`` and ``dctps-train``: train, evaluate and report one network."""

import re
import signal
import sys
import textwrap
from pathlib import Path
from typing import NoReturn

from absl import app, flags
from ml_collections import config_flags

from dctps_jax.cli.configuration import help_of_fields
from dctps_jax.cli.experiments import default_workdir, find_experiment, names_in
from dctps_jax.command import command
from dctps_jax.config import resolve, unknown_field
from dctps_jax.defaults import FIELDS
from dctps_jax.distributed.process_group import together
from dctps_jax.errors import UserError
from dctps_jax.training.run import run
from dctps_jax.training.signals import listen_for_signals

CONFIG = config_flags.DEFINE_config_file("config", None, "File with the run's config.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run, or of the sweep.")
USAGE = """python train.py --config configs/NAME.py [--workdir DIR] [--config.FIELD=VALUE …]

--workdir  directory of the run; if not given, runs/ and the name of the config with the fields that are set"""


def main() -> None:
    try:
        with command("train.py"):
            app.run(_main, flags_parser=parse_flags)
    finally:
        # The outcome is printed. Another Ctrl-C, while the interpreter shuts down, must not change the exit code.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"there is no argument {argv[1]!r}; options look like --config.seed=1")
    if CONFIG.value is None and flags.FLAGS["config"].present:
        raise UserError("--config: get_config() of the file returns None; return the config")
    if CONFIG.value is None:
        raise UserError("give a config: python train.py --config configs/NAME.py; --help names all fields of a config")
    with listen_for_signals(ends_process=True) as signals, together(resolve(CONFIG.value)):
        run(CONFIG.value, workdir_of("runs"), signals)


def workdir_of(root: str, *files: str) -> Path:
    """Return the directory that the command names; if it names none, print and return one made from the experiment.

    ``files`` are the files of the experiment besides the config.
    """
    if WORKDIR.value:
        return Path(WORKDIR.value)
    flag = flags.FLAGS["config"]
    files = (*files, config_flags.get_config_filename(flag))
    workdir = default_workdir(root, files, config_flags.get_override_values(flag), resolve(CONFIG.value))
    print(f"directory: {workdir}")
    return workdir


def print_help(usage: str) -> NoReturn:
    """Print how the program is used and every field of a config, and end it."""
    configs = f"--config   a file, or one of: {', '.join(names_in())}"
    print(f"{usage}\n{textwrap.fill(configs, 100, subsequent_indent=' ' * 11)}")
    print(f"\nFields of the config, with their defaults; a config file sets its own:\n\n{help_of_fields()}")
    sys.exit(0)


def parse_flags(argv: list[str], usage: str = USAGE) -> list[str]:
    """Parse the command line and load the config file; report a mistake in one sentence, without a traceback."""
    file, argv = "", list(argv)
    if any(argument in ("-h", "-help", "--help") for argument in argv):
        print_help(usage)
    for position, argument in enumerate(argv):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name not in flags.FLAGS and (fields := _fields_called(name)):
            told = f"{equals}{value}"
            names = " or ".join(f"--config.{field}{told}" for field in fields)
            raise UserError(f"there is no option --{name}{told}; a field of the config is set by {names}")
        if argument.startswith("-") and name == "config" and (equals or position + 1 < len(argv)):
            given, colon, parameter = (value if equals else argv[position + 1]).partition(":")
            file = str(find_experiment("--config", given))
            argv[position : position + (1 if equals else 2)] = [f"--config={file}{colon}{parameter}"]
        field = name.removeprefix("no").removeprefix("config.")
        if argument.startswith("-") and name.startswith(("config.", "noconfig.")) and field not in FIELDS:
            raise UserError(unknown_field(field))
        if argument.startswith("-") and name.startswith("config.") and (equals or position + 1 < len(argv)):
            _check_tuple(name.removeprefix("config."), value if equals else argv[position + 1])
    try:
        return flags.FLAGS(argv)
    except BrokenPipeError:  # --help | head
        raise
    except Exception as error:  # absl, ml_collections, or the config file, which is a Python program
        message = str(error).strip()
        override = re.match(r"flag --config\.([\w.]+)=(.*?): ", message, re.DOTALL)
        if override:
            raise UserError(
                f"config.{override[1]} is {override[2]!r}; it must be {FIELDS[override[1]].type_words}"
            ) from error
        if isinstance(error, flags.Error) and "config file" not in message:
            raise UserError(" ".join(message.split())) from error
        if isinstance(error, AttributeError) and "'get_config'" in message:
            raise UserError(
                f"--config: {file} has no function get_config(); give the file of a config (a sweep goes to --sweep)"
            ) from error
        last_line = message.splitlines()[-1] if message else type(error).__name__
        raise UserError(f"--config: {file} cannot be used: {last_line}") from error


def _fields_called(name: str) -> list[str]:
    """Return the fields of the config with this name or this last part: "density" gives "pruning.density"."""
    return [field for field in FIELDS if field == name or field.endswith(f".{name}")]


def _check_tuple(name: str, value: str) -> None:
    """Raise UserError for a tuple that is written without brackets: ml_collections takes 5 for (5,)."""
    if isinstance(FIELDS[name].default, tuple) and not value.strip().startswith(("(", "[")):
        element = value if value.replace(".", "").isdigit() else repr(value)
        raise UserError(f'config.{name} is {value!r}; it must be a tuple: "--config.{name}=({element},)"')


if __name__ == "__main__":
    main()
