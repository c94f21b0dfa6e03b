"""Keeps the runs of these tests small."""

import pytest

from dctps_jax import data
from dctps_jax.training import loop
from tests.training import small_runs


@pytest.fixture(scope="session")
def digits():
    return small_runs.small_digits()


@pytest.fixture(scope="module")
def small(digits):
    """Makes `run()` small: few images, one device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.SOURCES, "digits", lambda options: digits)
        patch.setattr(loop, "place_on_all_devices", lambda: small_runs.placement_on(1))
        yield


@pytest.fixture(scope="module")
def plain(small, tmp_path_factory):
    """The directory of a run that nothing disturbed: 2 epochs, a checkpoint every 2 steps."""
    workdir = tmp_path_factory.mktemp("plain")
    small_runs.small_run(workdir, checkpoint_every_steps=2)
    return workdir
