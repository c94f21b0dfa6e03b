import subprocess
import sys

import numpy as np
import pytest

from dctps_jax.data import SOURCES, Source, load
from dctps_jax.errors import UserError


def message(*arguments, **options):
    with pytest.raises(UserError) as caught:
        load(*arguments, **options)
    return str(caught.value)


def test_sizes_of_the_table_are_right():
    assert load("digits").image_size == SOURCES["digits"].image_size
    assert load("synthetic").image_size == 32 and load("synthetic", image_size=48).image_size == 48


def test_unknown_name():
    text = message("cifar01")
    assert "data.name is 'cifar01'" in text and "did you mean 'cifar10'" in text and "tiny_imagenet" in text
    assert "did you mean" not in message("zzz")


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100", "tiny_imagenet"])
def test_size_of_its_own_only(name):
    text = message(name, image_size=48)
    assert "data.image_size is 48" in text and f"0 or {SOURCES[name].image_size}" in text


def test_native_size_is_allowed():
    assert load("digits", image_size=32).image_size == 32


def test_bad_fields(tmp_path):
    assert "data.image_size is -1" in message("synthetic", image_size=-1)
    assert "data.dir is empty" in message("image_folder")
    file = tmp_path / "cifar-10-binary.tar.gz"
    file.touch()
    text = message("cifar10", dir=str(file))
    assert str(file) in text and "is a file" in text


def test_what_the_system_refuses_is_named(tmp_path, monkeypatch):
    def refused(options):
        raise PermissionError(13, "Permission denied", "/some/file")

    monkeypatch.setitem(SOURCES, "cifar10", Source(refused))
    text = message("cifar10", dir=str(tmp_path))
    assert "/some/file cannot be read (Permission denied)" in text and "data.dir" in text


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tiny_imagenet"])
def test_missing_files_name_what_to_put_where(name, tmp_path):
    text = message(name, dir=str(tmp_path / "nowhere"), download=False)
    assert str(tmp_path / "nowhere") in text and "http" in text and "data.download" in text


def test_default_dir_is_in_the_home_folder(home):
    assert str(home / ".cache/dctps_jax/data") in message("cifar10", download=False)


def test_importing_stays_light():
    code = (
        "import sys, dctps_jax.data; "
        "assert not {'tensorflow', 'tensorflow_datasets', 'sklearn', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("field", ["dir", "cache_dir"])
@pytest.mark.parametrize("value", ["~nobody-of-this-name/data", "nul\0byte"])
def test_what_names_no_folder(field, value):
    text = message("image_folder", **{"dir": "somewhere", field: value})
    assert f"data.{field} is {value!r}, which is no path" in text


def test_memory_that_runs_out_is_one_sentence(monkeypatch):
    def too_much(options):
        images = np.empty(2**62, np.uint8)
        raise AssertionError(f"there was room for {images.nbytes} bytes")

    monkeypatch.setitem(SOURCES, "digits", Source(too_much))
    assert "data.name is 'digits', whose decoded images do not fit into memory" in message("digits")
