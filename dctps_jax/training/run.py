"""One training run from config to results, in order: data, networks and supports, states, training, report."""

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from dctps_jax import data
from dctps_jax.config import check_config
from dctps_jax.data.batches import Split
from dctps_jax.errors import UserError
from dctps_jax.training import loop
from dctps_jax.training.memory import keep_freed_memory
from dctps_jax.training.report import last_line, summarize
from dctps_jax.training.seed_run import SeedRun
from dctps_jax.training.side_by_side import parts, stacked
from dctps_jax.training.stopping import Stopped, listen_for_signals
from dctps_jax.training.workdir import claim, read_results, record_config


class Seed(NamedTuple):
    """The directory and the config of one seed."""

    workdir: Path
    config: Any


def run(config: Any, workdir: Path) -> dict[str, Any]:
    """Train, evaluate and report as ``config`` says, in ``workdir``; go on where an earlier call was stopped.

    With ``num_seeds`` above 1 each seed has a directory ``seed_N`` of its own, and the mean and standard deviation of
    the accuracies are reported; with ``parallel_seeds`` they train side by side in one program. Returns what stands in
    ``results.json``. A finished run reports and does nothing.

    Raises :class:`~dctps_jax.errors.UserError` before anything is compiled or trained where config, data or directory
    cannot work, :class:`~dctps_jax.training.stopping.NonFiniteLoss`, and
    :class:`~dctps_jax.training.stopping.Stopped` after SIGTERM or Ctrl-C.
    """
    if config.get("execution", {}).get("keep_memory") is True:
        keep_freed_memory()
    if config.get("multi_host", False):
        jax.distributed.initialize()
    config = config.copy_and_resolve_references()
    check_config(config)
    whole = Seed(workdir.absolute(), config)
    if config.num_seeds == 1:
        return _run_seeds([whole], [whole])[0]
    with claim(*whole):
        seeds = []
        for number in range(config.seed, config.seed + config.num_seeds):
            single = config.copy_and_resolve_references()
            single.seed, single.num_seeds, single.parallel_seeds = number, 1, False
            seeds.append(Seed(whole.workdir / f"seed_{number}", single))
        results = []
        for group in [seeds] if config.parallel_seeds else [[seed] for seed in seeds]:
            numbers = ", ".join(str(seed.config.seed) for seed in group)
            print(f"seed {numbers}:" if len(group) == 1 else f"seeds {numbers}, side by side:")
            results += _run_seeds(group, [whole, *group])
        return summarize(results, whole.workdir)


def _run_seeds(seeds: Sequence[Seed], directories: Sequence[Seed]) -> list[dict[str, Any]]:
    """Do what is not finished of the runs of ``seeds`` and return their results."""
    with contextlib.ExitStack() as claims:
        for seed in seeds:
            claims.enter_context(claim(*seed))
        finished = {}
        for workdir, _ in seeds:
            if (workdir / "results.json").exists():
                finished[workdir] = read_results(workdir)
                print(f"{workdir} is finished. {last_line(finished[workdir])}")
        unfinished = [seed for seed in seeds if seed.workdir not in finished]
        if unfinished:
            trained = _train(unfinished, directories)
            finished |= {seed.workdir: results for seed, results in zip(unfinished, trained, strict=True)}
        return [finished[seed.workdir] for seed in seeds]


def _train(seeds: Sequence[Seed], directories: Sequence[Seed]) -> list[dict[str, Any]]:
    """Train ``seeds`` in one program; ``directories`` are bound to their configs once nothing can be wrong."""
    # Data, and each seed's network and support.
    config, count = seeds[0].config, len(seeds)
    dataset = data.load(
        config.data.name, dir=config.data.dir, cache_dir=config.data.cache_dir, image_size=config.data.image_size,
        download=config.data.download,
    )  # fmt: skip
    runs = [SeedRun(seed.config, seed.workdir, dataset, is_alone=count == 1) for seed in seeds]
    plan, numbers = runs[0].plan, [seed.config.seed for seed in seeds]
    _check_same_counts(runs)
    runs[0].print_layers()
    for directory in directories:
        record_config(*directory)

    # States, where an earlier call left them, on the devices as the images, which live there as uint8.
    placement = loop.place_on_all_devices()
    for one in runs:
        one.start(placement)
    runs[0].print_storage()
    step = _go_on(runs)
    for one in runs:
        one.open_records(step)

    def together(trees: Sequence[Any]) -> Any:
        return jax.device_put(stacked(trees), placement.replicated)

    def each(act: Callable[..., None], *trees: Any) -> None:
        """Do something for each seed with its parts of ``trees``."""
        for one, *its in zip(runs, *(parts(tree, count) for tree in trees), strict=True):
            act(one, *its)

    states, all_sums = zip(*(one.hand_over() for one in runs), strict=True)
    state, sums = together(states), together(all_sums)
    del states, all_sums
    train = placement.put(Split(dataset.train_images, dataset.train_labels))
    validation = train, together([one.held_out for one in runs])
    test = placement.put(Split(dataset.test_images, dataset.test_labels))
    test = test, together([np.arange(len(dataset.test_labels), dtype=np.int32)] * count)

    def order_of_epoch(epoch: int) -> jax.Array:
        return together([loop.order_of_epoch(epoch, one.plan, one.rows) for one in runs])

    # Training.
    every = config.checkpoint_every_steps
    programs = loop.compile_programs(
        [one.plan for one in runs], runs[0].graphs, runs[0].optimizer, placement, state, sums, train, order_of_epoch(0),
        [validation, test],
    )  # fmt: skip
    print(
        f"{config.model.name}, {runs[0].trainable:,} trainable parameters, {plan.steps_per_epoch} steps an epoch, "
        f"{jax.device_count()} {jax.devices()[0].platform} device(s), compiled in {programs.compile_seconds:.1f} s"
    )
    with listen_for_signals() as request:
        for epoch in range(step // plan.steps_per_epoch, config.num_epochs):
            epoch_started, first_step = time.perf_counter(), step
            progress = tqdm(
                total=plan.steps_per_epoch, initial=step % plan.steps_per_epoch, desc=f"epoch {epoch + 1}/{config.num_epochs}",
                leave=False, disable=not sys.stderr.isatty(), unit="step",
            )  # fmt: skip
            dispatches = loop.run_epoch(
                programs, plan, placement, state, sums, train, order_of_epoch(epoch), step,
                log_every_steps=config.log_every_steps,
                num_drop_at=lambda step: stacked([one.num_drop_at(step) for one in runs]), seeds=numbers,
            )  # fmt: skip
            for now, state, sums in dispatches:
                progress.update(now - step)
                before, step = step, now
                if step % plan.steps_per_epoch == 0:
                    break
                if request.signal_number or (every and step // every > before // every):
                    loop.check_finite(sums, state, numbers)
                    each(partial(SeedRun.save, step=step), state, sums)
                    _stop_if_asked(request, step)
            progress.close()
            loop.check_finite(sums, state, numbers)
            images = (step - first_step) * plan.batch_size * count
            end_epoch = partial(
                SeedRun.end_epoch,
                epoch=epoch,
                step=step,
                images_per_second=images / (time.perf_counter() - epoch_started),
            )
            each(end_epoch, state, sums, programs.evaluate(state, *validation))
            sums = placement.put(stacked([one.no_sums for one in runs]))
            _stop_if_asked(request, step)

    # Report: the last model and the best on validation, both on the test set.
    best = [one.best_state() for one in runs]
    tested = parts(programs.evaluate(state, *test), count)
    ends = parts(state, count)
    known = [end if its is None else its for its, end in zip(best, ends, strict=True)]
    tested_best = parts(programs.evaluate(together(known), *test), count)
    return [
        one.finish(step, end, last, None if its is None else its_test, programs.compile_seconds, count)
        for one, end, last, its, its_test in zip(runs, ends, tested, best, tested_best, strict=True)
    ]


def _check_same_counts(runs: Sequence[SeedRun]) -> None:
    """Compact states of several seeds can be stacked only where their layers keep equally many weights."""
    for one in runs[1:]:
        different = [path for path in one.counts if one.counts[path] != runs[0].counts[path]]
        if different and one.is_compact:
            raise UserError(
                f"config.parallel_seeds is True, but the seeds keep different numbers of weights, in {different[0]} "
                f"{runs[0].counts[different[0]]} and {one.counts[different[0]]}; set config.execution.form='masked', or "
                "config.parallel_seeds=False"
            )


def _go_on(runs: Sequence[SeedRun]) -> int:
    """Have all runs go on from the newest step that all have saved, and return it."""
    saved = [one.checkpoints.steps() for one in runs]
    if len({max(steps, default=0) for steps in saved}) > 1:
        # A kill came between the saves of two seeds: where it was the first one, the seeds ahead of it go back to the start.
        first = [0] if all(len(steps) < 2 for steps in saved) else []
        common = set.intersection(*(set(steps or [0]) | set(first) for steps in saved))
        if not common:
            raise _not_together([max(steps, default=0) for steps in saved])
        for one in runs:
            one.checkpoints.forget_after(max(common))
    steps = [one.go_on() for one in runs]
    if len(set(steps)) > 1:  # a checkpoint is damaged
        raise _not_together(steps)
    if steps[0] > 0:
        print(f"going on from step {steps[0]}")
    return steps[0]


def _not_together(steps: Sequence[int]) -> UserError:
    return UserError(
        f"the seeds stand at the steps {', '.join(map(str, steps))}, and have saved none in common from which they could go on side by "
        "side; with config.parallel_seeds=False each goes on from where it stands"
    )


def _stop_if_asked(request: Any, step: int) -> None:
    if request.signal_number:
        raise Stopped(request.signal_number, step)
