"""One fuzz for a file's tests; its sound files are made once, and the home folder is left alone."""

import pytest

from tests.faults.fuzz import Fuzz


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield Fuzz(tmp_path_factory.mktemp("faults"))
