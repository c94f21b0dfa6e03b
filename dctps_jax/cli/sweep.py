"""``sweep.py`` and ``dctps-sweep``: train every combination of values, each in a process and a directory of its own."""

import runpy
import sys
from functools import partial
from typing import Any

from absl import app, flags

from dctps_jax.cli.experiments import find_experiment, names_in
from dctps_jax.cli.train import CONFIG, parse_flags, workdir_of
from dctps_jax.command import command
from dctps_jax.defaults import FIELDS
from dctps_jax.errors import UserError
from dctps_jax.runs.grid import plan_runs
from dctps_jax.runs.sweep import Sweep

SWEEP = flags.DEFINE_string("sweep", None, "File with the values to combine, as a function get_sweep().")
JOBS = flags.DEFINE_integer("jobs", 1, "How many runs at a time; they divide the processors among themselves.")

USAGE = f"""python sweep.py --config configs/NAME.py --sweep configs/sweeps/NAME.py [--jobs N] [--config.FIELD=VALUE …]

--sweep    a file with a function get_sweep(), or one of: {", ".join(names_in("sweeps"))}
--jobs     how many runs at a time
--workdir  directory of the sweep; if not given, sweeps/ and the names of sweep, config and fields that are set"""


class Unfinished(Exception):
    """A sweep that ended before all its runs were finished."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def main() -> None:
    with command("sweep.py"):
        app.run(_main, flags_parser=partial(parse_flags, usage=USAGE))


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"there is no argument {argv[1]!r}; options look like --config.seed=1")
    if CONFIG.value is None or not SWEEP.value:
        raise UserError(
            "give a config and a sweep: python sweep.py --config configs/NAME.py --sweep configs/sweeps/NAME.py"
        )
    if JOBS.value < 1:
        raise UserError(f"--jobs is {JOBS.value}; it must be at least 1")
    runs = plan_runs(CONFIG.value, load_sweep(SWEEP.value))
    if CONFIG.value.distributed.coordinator:
        raise UserError(
            f"config.distributed.coordinator is {CONFIG.value.distributed.coordinator!r}, but a sweep trains each run "
            "in one process; leave it out, or start each run by itself on all hosts"
        )
    train = [sys.executable, "-m", "dctps_jax.cli.train", *options_for_all(sys.argv)]
    sweep = Sweep(runs, train, workdir_of("sweeps", SWEEP.value).absolute(), JOBS.value)
    sweep.go()
    finished = f"{sweep.num_finished()} of {len(runs)} runs are finished"
    if sweep.signal_number is not None:
        raise Unfinished(f"stopped; {finished}; the same command goes on from there", 128 + sweep.signal_number)
    print(finished)
    if sweep.failed:
        names = ", ".join(sweep.failed)  # the reasons are printed, each when its run failed
        raise Unfinished(
            f"{len(sweep.failed)} of {len(runs)} runs failed ({names}); the same command tries them again", 1
        )


def load_sweep(name: str) -> Any:
    """Return the grids of a file with a function ``get_sweep()``, or of an experiment by its name."""
    file = find_experiment("--sweep", name, "sweeps")
    try:
        program = runpy.run_path(str(file))
        if "get_sweep" not in program:
            raise UserError(f"--sweep: {file} has no function get_sweep()")
        return program["get_sweep"]()
    except UserError:
        raise
    except Exception as error:  # the file is a Python program
        raise UserError(f"--sweep: {file} cannot be used: {type(error).__name__}: {error}") from error


def options_for_all(argv: list[str]) -> list[str]:
    """Return the arguments that set the config and its fields, for ``train.py``."""
    options, is_value = [], False
    for argument in argv[1:]:
        name = argument.lstrip("-").partition("=")[0]
        is_config = argument.startswith("-") and (name == "config" or name.startswith(("config.", "noconfig.")))
        if argument.startswith("-") and name == "flagfile":
            raise UserError("--flagfile is for train.py; give the fields of a sweep's config one by one")
        if is_value or is_config:
            options.append(argument)
        # A field that is True or False may stand alone: --config.data.augment. The value of others may begin with "-".
        is_value = not is_value and is_config and "=" not in argument and not _stands_alone(name)
    return options


def _stands_alone(name: str) -> bool:
    field = FIELDS.get(name.removeprefix("config."))
    return name.startswith("noconfig.") or (field is not None and isinstance(field.default, bool))


if __name__ == "__main__":
    main()
