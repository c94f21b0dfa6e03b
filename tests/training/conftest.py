"""Keeps the runs of these tests small, and compiles each of their programs once."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from dctps_jax import data
from dctps_jax.training import loop
from tests.training import small_runs

CACHE_OPTIONS = {
    "jax_compilation_cache_dir": None,
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


@pytest.fixture(scope="session")
def digits():
    return small_runs.small_digits()


@pytest.fixture(scope="module")
def compile_once(tmp_path_factory):
    """A compilation cache on disk for the tests of a module."""
    before = {name: getattr(jax.config, name) for name in CACHE_OPTIONS}
    options = CACHE_OPTIONS | {"jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled"))}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def small(digits, compile_once):
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
