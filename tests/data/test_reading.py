import os

import pytest

from dctps_jax.data.reading import stamp_of
from dctps_jax.errors import UserError


def test_stamp(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    first = stamp_of(tmp_path, [file])
    assert stamp_of(tmp_path, [file]) == first
    assert stamp_of(tmp_path, [file], extra="8") != first
    os.utime(file, (1, 1))
    second = stamp_of(tmp_path, [file])
    file.write_bytes(b"abcd")
    os.utime(file, (1, 1))
    assert len({first, second, stamp_of(tmp_path, [file])}) == 3
    with pytest.raises(UserError, match="gone"):
        stamp_of(tmp_path, [tmp_path / "gone"])
