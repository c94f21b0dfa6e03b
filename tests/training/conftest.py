"""Keeps the runs of these tests small, and makes small disks."""

import os
import subprocess

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


class SmallDisk:
    """A file system in memory of a size that may change."""

    def __init__(self, folder):
        self.folder = folder
        self.folder.mkdir()

    def mount(self):
        command = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(self.folder)]
        return os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0

    def resize(self, kilobytes):
        subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(self.folder)], check=True)

    def unmount(self):
        subprocess.run(["umount", "-l", str(self.folder)], check=True)


@pytest.fixture
def small_disk(tmp_path):
    disk = SmallDisk(tmp_path / "disk")
    if not disk.mount():
        pytest.skip("only root may mount a small disk")
    yield disk
    disk.unmount()
