"""A run traces each of its programs once, before its first step, however long it is and wherever it goes on."""

from collections import Counter

import pytest

from dctps_jax.training import loop
from tests.killed_runs import run_until_killed
from tests.small_runs import rows, small_run

pytestmark = pytest.mark.usefixtures("small")

MOVING = {"sparse_training__method": "rigl", "sparse_training__update_every": 3, "sparse_training__stop_fraction": 1.0}
# Images are validated on, and tested on, by the same program.
EVALUATIONS = {("eval_step", 1): 1}


@pytest.fixture
def traces(monkeypatch):
    """Count how often each program is traced: by its function, and its steps."""
    counts = Counter()

    def counted(function, size_of):
        def call(*arguments, **options):
            counts[function.__name__, size_of(arguments, options)] += 1
            return function(*arguments, **options)

        return call

    def num_steps(arguments, options):
        return options["num_steps"]

    monkeypatch.setattr(loop, "take_steps", counted(loop.take_steps, num_steps))
    monkeypatch.setattr(loop, "update_masks", counted(loop.update_masks, lambda arguments, options: 1))
    monkeypatch.setattr(loop, "eval_step", counted(loop.eval_step, lambda arguments, options: 1))
    return counts


@pytest.mark.parametrize("options", [{}, MOVING], ids=["static", "rigl"])
@pytest.mark.parametrize(("steps_per_dispatch", "lengths"), [(1, {1}), (2, {1, 2}), (5, {5})])
def test_each_program_is_traced_once(tmp_path, traces, options, steps_per_dispatch, lengths):
    small_run(tmp_path, num_epochs=3, steps_per_dispatch=steps_per_dispatch, **options)
    assert len(rows(tmp_path)) == 3
    expected = {("take_steps", length): 1 for length in (lengths | {1} if options else lengths)}
    assert traces == expected | EVALUATIONS | ({("update_masks", 1): 1} if options else {})


def test_a_run_that_goes_on_traces_each_once_again(tmp_path, traces):
    run_until_killed(tmp_path, 4, num_epochs=3, checkpoint_every_steps=2)
    traces.clear()
    small_run(tmp_path, num_epochs=3, checkpoint_every_steps=2)
    assert traces == {("take_steps", 1): 1} | EVALUATIONS


def test_an_epoch_without_updates_after_one_with_updates_has_its_program(tmp_path, traces):
    # Updates end after step 3, in the first epoch: the later ones are of one dispatch.
    small_run(tmp_path, num_epochs=3, steps_per_dispatch=5, **MOVING | {"sparse_training__stop_fraction": 0.3})
    assert traces == {("take_steps", 1): 1, ("take_steps", 5): 1, ("update_masks", 1): 1} | EVALUATIONS
