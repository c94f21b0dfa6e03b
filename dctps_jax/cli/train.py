"""``train.py`` and ``dctps-train``: train, evaluate and report one network."""

import re
import signal
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from dctps_jax.cli.experiments import find_experiment
from dctps_jax.command import command
from dctps_jax.config import unknown_field
from dctps_jax.defaults import FIELDS
from dctps_jax.errors import UserError
from dctps_jax.training.run import run
from dctps_jax.training.signals import listen_for_signals

CONFIG = config_flags.DEFINE_config_file("config", None, "File with the run's config.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run: config, metrics, checkpoints, results.")


def main() -> None:
    try:
        with command("train.py"):
            app.run(_main, flags_parser=parse_flags)
    finally:
        # The outcome is told. One more Ctrl-C, while the interpreter is taken down, must not change the exit code.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"there is no argument {argv[1]!r}; options look like --config.seed=1")
    workdir = WORKDIR.value
    if CONFIG.value is None or not workdir:
        raise UserError("give a config and a directory: python train.py --config configs/NAME.py --workdir DIR")
    with listen_for_signals(ends_process=True) as signals:
        run(CONFIG.value, Path(workdir), signals)


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the command line and load the config file; a mistake in them is one sentence, not a traceback."""
    file, argv = "", list(argv)
    for position, argument in enumerate(argv):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config" and (equals or position + 1 < len(argv)):
            given, colon, parameter = (value if equals else argv[position + 1]).partition(":")
            file = str(find_experiment("--config", given))
            argv[position : position + (1 if equals else 2)] = [f"--config={file}{colon}{parameter}"]
        if argument.startswith("-") and name.startswith("config.") and name.removeprefix("config.") not in FIELDS:
            raise UserError(unknown_field(name.removeprefix("config.")))
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
        last_line = message.splitlines()[-1] if message else type(error).__name__
        raise UserError(f"--config: {file} cannot be used: {last_line}") from error


if __name__ == "__main__":
    main()
