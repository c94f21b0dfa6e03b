"""Train, evaluate and report one network: ``python train.py --config configs/NAME.py --workdir DIR``.

Every field of the config can be set on the command line: ``--config.pruning.density=0.001``.
"""

import logging
import sys
from pathlib import Path
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from dctps_jax.errors import UserError
from dctps_jax.training.run import run
from dctps_jax.training.stopping import NonFiniteLoss, Stopped

CONFIG = config_flags.DEFINE_config_file("config", None, "File with the run's config.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run: config, metrics, checkpoints, results.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        fail(f"there is no argument {argv[1]!r}; options look like --config.seed=1")
    workdir = WORKDIR.value
    if CONFIG.value is None or not workdir:
        fail("give a config and a directory: python train.py --config configs/NAME.py --workdir DIR")
    show_warnings_only()
    try:
        run(CONFIG.value, Path(workdir))
    except UserError as error:
        fail(str(error))
    except (Stopped, NonFiniteLoss) as ending:
        fail(str(ending), ending.exit_code)


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the command line; a mistake in it is one sentence, not a traceback."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        fail(" ".join(str(error).split()))


def show_warnings_only() -> None:
    """Keep the libraries' chatter off the screen; our own warnings are one plain line each."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    logging.getLogger("dctps_jax").addHandler(handler)
    logging.getLogger("dctps_jax").propagate = False


def fail(message: str, exit_code: int = 2) -> NoReturn:
    print(f"train.py: {message}", file=sys.stderr)
    sys.exit(exit_code)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
