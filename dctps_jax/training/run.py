"""A run from config to results: check, claim the directory, then train one seed after another."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dctps_jax.config import check_all_is_read, check_config, check_value, resolve
from dctps_jax.distributed.agreement import on_first
from dctps_jax.distributed.process_group import together
from dctps_jax.field import find_field
from dctps_jax.runs.bound_data import check_same_data, record_data
from dctps_jax.runs.growth import holds_one_seed, move_into_seed, record_growth
from dctps_jax.runs.repair import mend_finished_run
from dctps_jax.runs.summary import last_line, summarize
from dctps_jax.runs.workdir import claim, is_finished, read_config, read_results
from dctps_jax.training.compiled_programs import keep_compiled_programs
from dctps_jax.training.memory import keep_freed_memory
from dctps_jax.training.own_network import check_finished_program
from dctps_jax.training.placement import place_on_all_devices
from dctps_jax.training.signals import StopSignals, listen_for_signals
from dctps_jax.training.train_seed import train_seed
from dctps_jax.user_functions import is_import_path


def run(config: Any, workdir: Path | str, signals: StopSignals | None = None) -> dict[str, Any]:
    """Train, evaluate and report as ``config`` says, in ``workdir``; go on where an earlier call was stopped.

    With ``num_seeds`` above 1, each seed has its own directory ``seed_N``, and the mean and standard deviation of the
    accuracies are reported. Returns the content of ``results.json``. A finished run only reports, unless the config
    asks for more epochs or seeds than it has. ``signals`` are the signals that a command line program listens for;
    without them the run listens itself.

    If config, data or directory cannot work, it raises :class:`~dctps_jax.errors.UserError` before anything is compiled
    or trained. It raises :class:`~dctps_jax.training.signals.NonFiniteLoss`, and
    :class:`~dctps_jax.training.signals.Stopped` after SIGTERM or Ctrl-C.
    """
    if config.get("execution", {}).get("keep_memory") is True:
        keep_freed_memory()
    if config.get("execution", {}).get("keep_compiled") is True:
        keep_compiled_programs()
    config = resolve(config)
    workdir = Path(workdir).absolute()
    with contextlib.ExitStack() as stack:
        if signals is None:
            signals = stack.enter_context(listen_for_signals())
        stack.enter_context(together(config))
        check_config(config)
        if not on_first((workdir / "config.json").exists):  # a run of an earlier version may go on as it began
            check_all_is_read(config)
        if config.num_seeds == 1:
            return _finish_seed(config, workdir, signals)
        if on_first(holds_one_seed, workdir):
            _finish_seed(_of_seed(config, config.seed), workdir, signals)
        stack.enter_context(claim(workdir, config))
        on_first(move_into_seed, workdir, config)
        settle_dtype(config, workdir)

        def bind_seeds(data: dict[str, Any]) -> None:
            record_growth(workdir, config)
            if not is_import_path(config.data.name):  # a function may give each seed images of its own
                check_same_data(workdir, data)
                record_data(workdir, data)

        results = []
        for seed in range(config.seed, config.seed + config.num_seeds):
            print(f"seed {seed}:")
            results.append(_finish_seed(_of_seed(config, seed), workdir / f"seed_{seed}", signals, bind_seeds))
        on_first(record_growth, workdir, config)
        return summarize(results, workdir, json.loads(config.to_json()))


def settle_dtype(config: Any, workdir: Path) -> None:
    """If ``model.dtype`` is "auto", set it to the type in which the run computes.

    A resumed run keeps the type that it began with, also on devices of another kind. A network of the user's own
    computes as its function made it, and stays at "auto".
    """
    if config.model.dtype != "auto":
        return
    is_own = is_import_path(config.model.name)
    auto = "auto" if is_own else place_on_all_devices().auto_dtype
    recorded = on_first(_recorded_dtype, workdir)
    config.model.dtype = auto if recorded == "auto" else recorded
    if config.model.dtype != auto and not is_own:
        print(f"going on in {recorded}, as the run began; a new run would compute in {auto} here")


def _recorded_dtype(workdir: Path) -> str:
    if not (workdir / "config.json").exists():
        return "auto"
    recorded = find_field(read_config(workdir), "model.dtype")[0] or "auto"
    check_value("model.dtype", recorded)
    return recorded


def _of_seed(config: Any, seed: int) -> Any:
    """Return the config of one of the seeds of a run."""
    single = config.copy_and_resolve_references()
    single.seed, single.num_seeds = seed, 1
    return single


def _finish_seed(
    config: Any, workdir: Path, signals: StopSignals, bind_seeds: Callable[[dict[str, Any]], None] = lambda data: None
) -> dict[str, Any]:
    """Return the results of the run of one seed; train what is missing.

    ``bind_seeds`` binds the directory of several seeds to config and data, once all checks have passed.
    """
    with claim(workdir, config):
        settle_dtype(config, workdir)
        if (results := on_first(_finished_results, workdir, config)) is not None:
            return results

        def bind(data: dict[str, Any], split: dict[str, str]) -> None:
            bind_seeds(data)
            record_growth(workdir, config)
            record_data(workdir, data | split)

        return train_seed(config, workdir, bind, signals)


def _finished_results(workdir: Path, config: Any) -> dict[str, Any] | None:
    """Return the results of the run of one seed, or None if it is not finished; mend its files."""
    if not is_finished(workdir, config):
        return None
    results = read_results(workdir)
    check_finished_program(workdir, config, results)
    print(f"{workdir} is finished. {last_line(results)}")
    mend_finished_run(workdir, config, results)
    return results
