import dataclasses
import gzip
import hashlib
import io
import shutil
import tarfile
import tracemalloc

import numpy as np
import pytest

from dctps_jax.data import load
from dctps_jax.data.download import ARCHIVES
from dctps_jax.errors import UserError
from tests.limits import no_more_handles

NAMES_10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
NAMES_100 = [f"fine{label:02}" for label in range(100)]


def records(count, classes, label_bytes, seed):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, 32, 32, 3), np.uint8)
    labels = random.integers(0, classes, count)
    coarse = np.full((count, label_bytes - 1), 19)
    planes = images.transpose(0, 3, 1, 2).reshape(count, -1)
    return images, labels, np.hstack([coarse, labels[:, None], planes]).astype(np.uint8).tobytes()


def make_cifar10():
    batches = [records(4, 10, 1, seed) for seed in range(6)]
    files = {"batches.meta.txt": ("\n".join(NAMES_10) + "\n\n").encode(), "readme.html": b"<html>"}
    files |= {f"data_batch_{number}.bin": batch[2] for number, batch in enumerate(batches[:5], 1)}
    files["test_batch.bin"] = batches[5][2]
    train = [np.concatenate([batch[part] for batch in batches[:5]]) for part in (0, 1)]
    return files, train, batches[5][:2]


def make_cifar100():
    train, test = records(12, 100, 2, 1), records(5, 100, 2, 2)
    files = {
        "train.bin": train[2],
        "test.bin": test[2],
        "fine_label_names.txt": "\n".join(NAMES_100).encode(),
        "coarse_label_names.txt": b"some",
    }
    return files, train[:2], test[:2]


def pack(path, folder, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def check(dataset, train, test):
    np.testing.assert_array_equal(dataset.train_images, train[0])
    np.testing.assert_array_equal(dataset.train_labels, train[1])
    np.testing.assert_array_equal(dataset.test_images, test[0])
    np.testing.assert_array_equal(dataset.test_labels, test[1])


@pytest.fixture
def archive(tmp_path):
    (tmp_path / "data").mkdir()
    path = tmp_path / "data/cifar-10-binary.tar.gz"
    pack(path, "cifar-10-batches-bin", make_cifar10()[0])
    return path


def message(folder, name="cifar10"):
    with pytest.raises(UserError) as caught:
        load(name, dir=str(folder), download=False)
    return str(caught.value)


def test_cifar10_archive(archive):
    _, train, test = make_cifar10()
    for _ in range(2):  # decoded, then from the cache
        dataset = load("cifar10", dir=str(archive.parent), download=False)
        check(dataset, train, test)
        assert dataset.class_names == tuple(NAMES_10)
        assert dataset.mean == (0.4914, 0.4822, 0.4465) and dataset.std == (0.2023, 0.1994, 0.2010)


def test_byte_order_mark_is_no_part_of_a_name(tmp_path):
    files = make_cifar10()[0]
    pack(
        tmp_path / "cifar-10-binary.tar.gz",
        "cifar-10-batches-bin",
        files | {name: b"\xef\xbb\xbf" + content for name, content in files.items() if name.endswith(".txt")},
    )
    assert load("cifar10", dir=str(tmp_path), download=False).class_names == tuple(NAMES_10)


def test_cifar100_archive(tmp_path):
    files, train, test = make_cifar100()
    pack(tmp_path / "cifar-100-binary.tar.gz", "cifar-100-binary", files)
    dataset = load("cifar100", dir=str(tmp_path), download=False)
    check(dataset, train, test)
    assert dataset.class_names == tuple(NAMES_100)
    assert dataset.mean == (0.5071, 0.4867, 0.4408)


@pytest.mark.parametrize("inside", [False, True])
def test_extracted_folder(tmp_path, inside):
    files, train, test = make_cifar10()
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    given = folder if inside else tmp_path
    check(load("cifar10", dir=str(given), download=False), train, test)
    (folder / "data_batch_4.bin").unlink()
    assert f"{folder} holds no data_batch_4.bin" in message(given)


@pytest.mark.parametrize("keep", [0.0, 0.0001, 0.3, 0.7, 0.99, 0.99999])
def test_archive_cut_short(archive, keep):
    data = archive.read_bytes()
    archive.write_bytes(data[: int(keep * len(data))])
    assert f"{archive} is cut short or damaged" in message(archive.parent)


@pytest.mark.parametrize("where", [0.0, 0.1, 0.5, 0.9])
def test_archive_with_flipped_bytes(archive, where):
    data = bytearray(archive.read_bytes())
    position = int(where * len(data))
    data[position : position + 4] = b"\xaa\x55\xaa\x55"
    archive.write_bytes(data)
    assert str(archive) in message(archive.parent)


@pytest.mark.parametrize("position", [-1, -5, -8])
def test_wrong_checksum_of_gzip(archive, position):
    data = bytearray(archive.read_bytes())
    data[position] ^= 1
    archive.write_bytes(data)
    assert f"{archive} is cut short or damaged" in message(archive.parent)


# Named, since gzip writes the time into its header and every process has to find the same names.
@pytest.mark.parametrize(
    "content",
    [b"<html>not found</html>", gzip.compress(b"no tar"), gzip.compress(b"x" * 5000)],
    ids=["html", "short", "long"],
)
def test_foreign_file(archive, content):
    archive.write_bytes(content)
    assert str(archive) in message(archive.parent)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"data_batch_3.bin": bytes(3073 * 2 - 1)}, ["data_batch_3.bin", "6145 bytes", "multiple of 3073"]),
        ({"test_batch.bin": b""}, ["test_batch.bin", "0 bytes"]),
        ({"data_batch_5.bin": b"\x0a" + bytes(3072)}, ["data_batch_5.bin", "label 10", "0 to 9"]),
        ({"test_batch.bin": None}, ["holds no test_batch.bin"]),
        ({"batches.meta.txt": None}, ["holds no batches.meta.txt"]),
        ({"batches.meta.txt": b"cat\ndog\n"}, ["batches.meta.txt", "2 class names", "10"]),
        ({"batches.meta.txt": b"\xff\xfe"}, ["batches.meta.txt", "not text"]),
    ],
)
def test_what_does_not_fit_the_layout(archive, changes, parts):
    files = {name: content for name, content in (make_cifar10()[0] | changes).items() if content is not None}
    pack(archive, "cifar-10-batches-bin", files)
    text = message(archive.parent)
    for part in [str(archive), *parts]:
        assert part in text


def test_archive_of_the_other_cifar(archive):
    shutil.move(archive, archive.parent / "cifar-100-binary.tar.gz")
    assert "holds no train.bin" in message(archive.parent, "cifar100")


def test_copy_outlives_the_archive(archive, home):
    load("cifar10", dir=str(archive.parent), download=False)
    archive.unlink()
    _, train, test = make_cifar10()
    check(load("cifar10", dir=str(archive.parent), download=False), train, test)
    (copy,) = (home / ".cache/dctps_jax/decoded").iterdir()
    (copy / "train_labels.npy").write_bytes(b"")
    text = message(archive.parent)
    assert "train_labels.npy is damaged" in text and "data.dir" in text


def test_damage_after_decoding_does_not_matter_but_a_new_archive_does(archive):
    load("cifar10", dir=str(archive.parent), download=False)
    archive.write_bytes(b"now something else")
    assert "is cut short or damaged" in message(archive.parent)


def test_missing_archive_is_downloaded_once(archive, tmp_path, monkeypatch):
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    served = dataclasses.replace(ARCHIVES["cifar10"], url=archive.as_uri(), digest=digest)
    monkeypatch.setitem(ARCHIVES, "cifar10", served)
    _, train, test = make_cifar10()
    check(load("cifar10", dir=str(tmp_path / "new")), train, test)
    assert (tmp_path / "new/cifar-10-binary.tar.gz").read_bytes() == archive.read_bytes()
    archive.unlink()
    check(load("cifar10", dir=str(tmp_path / "new")), train, test)


def test_file_with_more_records_than_the_official_one(archive):
    pack(archive, "cifar-10-batches-bin", make_cifar10()[0] | {"data_batch_2.bin": bytes(10_001 * 3073)})
    text = message(archive.parent)
    assert f"data_batch_2.bin in {archive} has 30,733,073 bytes, but at most 30,730,000 are allowed" in text
    shutil.rmtree(archive.parent)
    (archive.parent / "cifar-10-batches-bin").mkdir(parents=True)
    with open(archive.parent / "cifar-10-batches-bin/test_batch.bin", "wb") as file:
        file.truncate(10_001 * 3073)
    text = message(archive.parent)
    assert "test_batch.bin has 30,733,073 bytes, but at most 30,730,000 are allowed" in text


def gigabyte_behind(member):
    """A tar.gz of about 1 MB: a member that says it has 1 GiB, and as many zeros."""
    block = gzip.compress(bytes(1 << 20))
    return gzip.compress(member) + block * 1024


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_archive_that_unpacks_to_a_gigabyte(archive, kind):
    member = tarfile.TarInfo("cifar-10-batches-bin/other.bin")
    member.size, member.type = 1 << 30, kind
    archive.write_bytes(gigabyte_behind(member.tobuf(tarfile.GNU_FORMAT)))
    tracemalloc.start()
    text = message(archive.parent)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "unpacks to more than the 185,494,112 bytes that are allowed" in text
    assert peak < 500e6


def test_zeros_behind_the_end_of_an_archive(archive):
    content = gzip.decompress(archive.read_bytes())
    archive.write_bytes(gigabyte_behind(content))
    assert "unpacks to more than the 185,494,112 bytes that are allowed" in message(archive.parent)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_members_that_are_no_files_are_passed_over(archive, kind):
    files = make_cifar10()[0]
    with tarfile.open(archive, "w:gz") as opened:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            if name == "test_batch.bin":
                member.type, member.linkname = kind, "/etc/passwd"
                opened.addfile(member)
            else:
                member.size = len(content)
                opened.addfile(member, io.BytesIO(content))
    assert f"{archive} holds no test_batch.bin" in message(archive.parent)


def test_headers_without_end(archive):
    header = tarfile.TarInfo("x")
    header.type = tarfile.GNUTYPE_LONGNAME
    archive.write_bytes(gzip.compress(header.tobuf() * 5000))
    assert f"{archive} is cut short or damaged" in message(archive.parent)


def test_spent_file_handles_are_no_damage(archive):
    with no_more_handles():
        text = message(archive.parent)
    assert f"{archive} cannot be read (Too many open files); allow more open files (ulimit -n)" in text
    assert len(load("cifar10", dir=str(archive.parent), download=False).test_images) == 4
