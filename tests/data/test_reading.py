import errno
import os

import pytest

from dctps_jax.data.reading import parsing, read_file, stamp_of
from dctps_jax.errors import UserError
from tests.limits import no_more_handles


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


@pytest.mark.parametrize("size", [0, 9, 10])
def test_read_file(tmp_path, size):
    (tmp_path / "file").write_bytes(b"x" * size)
    assert read_file(tmp_path / "file", 10) == b"x" * size


def test_longer_files_are_not_read(tmp_path):
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError) as caught:
        read_file(path, 10, "get it again")
    assert str(caught.value) == (f"{path} has 1,099,511,627,776 bytes, but at most 10 are allowed; get it again")


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "it is a pipe, not a regular file"),
        (os.mkdir, "it is a folder, not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "it is a device, not a regular file"),
        (lambda path: path.symlink_to("nowhere"), "No such file or directory"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    ],
)
def test_what_is_no_file_is_named(tmp_path, make, reason):
    make(tmp_path / "file")
    with pytest.raises(UserError, match=rf"file cannot be read \({reason}\); replace or remove it$"):
        read_file(tmp_path / "file", 10)


def test_spent_file_handles_are_named(tmp_path):
    (tmp_path / "file").touch()
    with no_more_handles(), pytest.raises(UserError, match=r"\(Too many open files\); allow more .* \(ulimit -n\)"):
        read_file(tmp_path / "file", 10)


def test_parsing_tells_damage_from_what_the_system_refuses(tmp_path):
    for error, message in [
        (IndexError("too short\nfor that"), "damaged (IndexError: too short); get it again"),
        (OSError("Not a gzipped file"), "damaged (OSError: Not a gzipped file)"),
        (OSError(errno.EINVAL, "Invalid argument"), "damaged (OSError"),
        (PermissionError(errno.EACCES, "Permission denied"), "cannot be read (Permission denied)"),
        (UserError("a sentence"), "a sentence"),
    ]:
        with pytest.raises(UserError) as caught, parsing(tmp_path, "get it again"):
            raise error
        assert message in str(caught.value)
    with pytest.raises(MemoryError), parsing(tmp_path, "get it again"):
        raise MemoryError
