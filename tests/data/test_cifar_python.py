"""The archives of CIFAR for Python: read as the binary ones, and no pickle calls anything."""

import io
import os
import pickle
import tarfile

import numpy as np
import pytest

from dctps_jax.data import load
from dctps_jax.errors import UserError
from tests.data.test_cifar import NAMES_10, NAMES_100, check, make_cifar10, make_cifar100


def pickled(value):
    """As Python 2 wrote the official files: texts are bytes, numpy's arrays by its old names."""
    content = pickle.dumps(value, protocol=2)
    return content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def batch(record_bytes, keys):
    records = np.frombuffer(record_bytes, np.uint8).reshape(-1, 3072 + len(keys))
    columns = {key.encode(): records[:, number].tolist() for number, key in enumerate(keys)}
    return {b"data": records[:, len(keys) :].copy(), **columns, b"filenames": [b"a.png"] * len(records)}


def python_files(name):
    if name == "cifar10":
        files, train, test = make_cifar10()
        found = {file.removesuffix(".bin"): batch(files[file], ["labels"]) for file in files if file.endswith(".bin")}
        names = {"batches.meta": {b"label_names": [name.encode() for name in NAMES_10], b"num_vis": 3072}}
        return "cifar-10-python.tar.gz", "cifar-10-batches-py", found | names, train, test
    files, train, test = make_cifar100()
    keys = ["coarse_labels", "fine_labels"]
    found = {part: batch(files[f"{part}.bin"], keys) for part in ("train", "test")}
    names = {"fine_label_names": [name.encode() for name in NAMES_100], "coarse_label_names": ["x"]}
    meta = {"meta": {key.encode(): value for key, value in names.items()}}
    return "cifar-100-python.tar.gz", "cifar-100-python", found | meta, train, test


def write(folder, archive, inside, files, packed=True):
    folder.mkdir(exist_ok=True)
    if not packed:
        (folder / inside).mkdir(exist_ok=True)
        for name, content in files.items():
            (folder / inside / name).write_bytes(content)
        return
    with tarfile.open(folder / archive, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{inside}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_read_as_the_binary_archive(tmp_path, name, packed):
    archive, inside, files, train, test = python_files(name)
    write(tmp_path / "data", archive, inside, {file: pickled(value) for file, value in files.items()}, packed)
    dataset = load(name, dir=str(tmp_path / "data"), download=False)
    check(dataset, train, test)
    assert dataset.class_names == tuple(NAMES_10 if name == "cifar10" else NAMES_100)


class Calls:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


FORGED = {
    "a call": (lambda folder: pickled(Calls(os.system, f"touch {folder}/called")), "asks for posix.system"),
    "a call of a builtin": (lambda folder: pickled(Calls(exec, "import os")), "asks for __builtin__.exec"),
    "an array of objects": (lambda folder: pickled({b"data": np.array([{}], object), b"labels": [1]}), "not of uint8"),
    "an array of numbers": (lambda folder: pickled({b"data": np.zeros((1, 3072)), b"labels": [1]}), "not of uint8"),
    "no dictionary": (lambda folder: pickled([1]), "it is no dictionary"),
    "no pickle": (lambda folder: b"\x80\x02 nonsense", "cut short or damaged"),
    "other images": (
        lambda folder: pickled({b"data": np.zeros((2, 3071), np.uint8), b"labels": [1, 2]}),
        "no images of 3,072 bytes",
    ),
    "too few labels": (
        lambda folder: pickled({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}),
        "no list of 2 numbers for labels",
    ),
    "a label that is no byte": (
        lambda folder: pickled({b"data": np.zeros((1, 3072), np.uint8), b"labels": [256]}),
        "no list of 1 numbers",
    ),
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_pickle_is_refused_and_calls_nothing(tmp_path, kind):
    make, part = FORGED[kind]
    archive, inside, files, *_ = python_files("cifar10")
    contents = {file: pickled(value) for file, value in files.items()} | {"data_batch_3": make(tmp_path)}
    write(tmp_path / "data", archive, inside, contents)
    with pytest.raises(UserError) as caught:
        load("cifar10", dir=str(tmp_path / "data"), download=False)
    assert part in str(caught.value) and "data_batch_3" in str(caught.value)
    assert not (tmp_path / "called").exists()
