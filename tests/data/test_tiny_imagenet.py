import io
import os
import random
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from dctps_jax.data import load
from dctps_jax.errors import UserError
from tests.limits import no_more_handles

WNIDS = ["n03", "n01", "n02"]


def jpeg(value, mode="RGB", size=(64, 64)):
    buffer = io.BytesIO()
    Image.new(mode, size, value).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def make_files():
    files = {"wnids.txt": "\n".join(WNIDS).encode(), "words.txt": b"n01\tgoldfish\n"}
    for place, wnid in enumerate(WNIDS):
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"0 0 1 1"
        for number in (0, 2, 10):
            files[f"train/{wnid}/images/{wnid}_{number}.JPEG"] = jpeg((80 * place, 20 * number, 40))
    files["train/n02/images/n02_2.JPEG"] = jpeg(99, mode="L")
    lines = []
    for number, wnid in enumerate(["n02", "n03", "n01", "n02"]):
        files[f"val/images/val_{number}.JPEG"] = jpeg((50 * number, 0, 0))
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t9\t9\n")
    files["val/val_annotations.txt"] = "".join(lines).encode()
    files["test/images/test_0.JPEG"] = b"never read"
    return files


def pack(path, files):
    names = list(files)
    random.Random(0).shuffle(names)
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("tiny-imagenet-200/train/n01/images")
        for name in names:
            archive.writestr(f"tiny-imagenet-200/{name}", files[name])


def check(dataset):
    assert dataset.class_names == ("n01", "n02", "n03")
    assert dataset.train_labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    wanted = [[80, 0, 40], [80, 40, 40], [80, 200, 40], [160, 0, 40], [99, 99, 99], [160, 200, 40]]
    wanted += [[0, 0, 40], [0, 40, 40], [0, 200, 40]]
    np.testing.assert_allclose(dataset.train_images[:, 30, 20].astype(int), wanted, atol=3)
    assert dataset.test_labels.tolist() == [1, 2, 0, 1]
    np.testing.assert_allclose(dataset.test_images[:, 1, 63, 0].astype(int), [0, 50, 100, 150], atol=3)
    assert dataset.train_images.shape[1:] == (64, 64, 3)


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "data/tiny-imagenet-200.zip"
    pack(path, make_files())
    return path


def message(folder):
    with pytest.raises(UserError) as caught:
        load("tiny_imagenet", dir=str(folder), download=False)
    return str(caught.value)


@pytest.mark.parametrize("name", ["tiny-imagenet-200.zip", "tiny-imagenet-200-subset.zip"])
def test_archive(archive, name):
    archive.rename(archive.parent / name)
    for _ in range(2):  # decoded, then from the cache
        dataset = load("tiny_imagenet", dir=str(archive.parent), download=False)
        check(dataset)
        assert dataset.mean == (0.4802, 0.4481, 0.3975) and dataset.std == (0.2770, 0.2691, 0.2821)


def test_official_name_goes_first_and_two_others_are_refused(archive):
    for name in ("tiny-imagenet-200-a.zip", "tiny-imagenet-200-b.zip"):
        (archive.parent / name).write_bytes(b"damaged")
    check(load("tiny_imagenet", dir=str(archive.parent), download=False))
    archive.unlink()
    text = message(archive.parent)
    assert "tiny-imagenet-200-a.zip, tiny-imagenet-200-b.zip" in text and "several" in text


@pytest.mark.parametrize("inside", [False, True])
def test_extracted_folder(archive, tmp_path, inside):
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path / "plain")
    folder = tmp_path / "plain/tiny-imagenet-200"
    given = folder if inside else folder.parent
    check(load("tiny_imagenet", dir=str(given), download=False))
    (folder / "train/n01/images/n01_2.JPEG").write_bytes(b"damaged")
    assert f"train/n01/images/n01_2.JPEG in {folder} cannot be read as an image" in message(given)


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_archive_cut_short(archive, keep):
    data = archive.read_bytes()
    archive.write_bytes(data[: int(keep * len(data))])
    assert f"{archive} is cut short or damaged" in message(archive.parent)


@pytest.mark.parametrize(
    "name", ["wnids.txt", "val/val_annotations.txt", "train/n02/images/n02_10.JPEG", "val/images/val_3.JPEG"]
)
def test_flipped_byte(archive, name, home):
    with zipfile.ZipFile(archive) as opened:
        entry = opened.getinfo(f"tiny-imagenet-200/{name}")
    data = bytearray(archive.read_bytes())
    data[entry.header_offset + 30 + len(entry.filename) + entry.compress_size // 2] ^= 0x10
    archive.write_bytes(data)
    assert f"{archive} is cut short or damaged" in message(archive.parent)
    assert not list((home / ".cache/dctps_jax/decoded").glob("*"))


def test_damaged_name_in_the_list_of_contents(archive):
    data = bytearray(archive.read_bytes())
    name = b"train/n01/images/n01_2.JPEG"
    data[data.rindex(name) + len(name) - 2] ^= 1
    archive.write_bytes(data)
    assert f"{archive} is cut short or damaged" in message(archive.parent)


LINE = "val_0.JPEG\tn02\t0\t0\t9\t9\n"


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"wnids.txt": None}, ["holds no tiny-imagenet-200/wnids.txt"]),
        ({"wnids.txt": b""}, ["wnids.txt", "empty"]),
        ({"wnids.txt": b"n01\nn02\nn03\nn01"}, ["wnids.txt", "twice"]),
        ({"wnids.txt": b"n01\nn02\nn03\nn04"}, ["no image in train/n04/images"]),
        ({"wnids.txt": b"n01\nn02"}, ["train/n03/images", "wnids.txt does not list"]),
        ({"wnids.txt": b"\xff\xfe"}, ["wnids.txt", "not text"]),
        ({"val/val_annotations.txt": None}, ["holds no tiny-imagenet-200/val/val_annotations.txt"]),
        ({"val/val_annotations.txt": LINE.encode()}, ["val_1.JPEG", "has no line in val/val_annotations.txt"]),
        ({"val/val_annotations.txt": (LINE * 2).encode()}, ["line 2 of val/val_annotations.txt", "val_0.JPEG"]),
        ({"val/val_annotations.txt": b"val_0.JPEG\tn09\t0\n"}, ["line 1 of val/val_annotations.txt", "n09"]),
        ({"val/val_annotations.txt": b"val_0.JPEG n02\n"}, ["line 1 of val/val_annotations.txt"]),
        ({"val/images/val_2.JPEG": None}, ["line 3 of val/val_annotations.txt", "val_2.JPEG"]),
        (
            {"val/images/val_2.JPEG": jpeg((0, 0, 0), size=(64, 32))},
            ["val/images/val_2.JPEG in ", " is 64 x 32", "64 x 64"],
        ),
        ({"train/n01/images/n01_0.JPEG": b"GIF"}, ["train/n01/images/n01_0.JPEG in ", " cannot be read as an image"]),
    ],
)
def test_what_does_not_fit_the_layout(archive, changes, parts):
    pack(archive, {name: content for name, content in (make_files() | changes).items() if content is not None})
    text = message(archive.parent)
    for part in parts:
        assert part in text
    if "cannot be read" not in text and "64 x 32" not in text:
        assert str(archive) in text


def test_foreign_archive(archive):
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("holiday.txt", "sun")
    assert "holds no tiny-imagenet-200/wnids.txt" in message(archive.parent)


def test_copy_outlives_the_archive(archive):
    load("tiny_imagenet", dir=str(archive.parent), download=False)
    archive.unlink()
    check(load("tiny_imagenet", dir=str(archive.parent), download=False))


@pytest.mark.parametrize("name", ["wnids.txt", "val/val_annotations.txt", "train/n01/images/n01_2.JPEG"])
def test_member_longer_than_any_official_one(archive, tmp_path, name):
    pack(archive, make_files() | {name: bytes(2**22 + 1)})
    assert f"{name} in {archive} has more than the 4,194,304 bytes that are allowed" in message(archive.parent)
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path / "plain")
    text = message(tmp_path / "plain")
    assert f"{name} has 4,194,305 bytes, but at most 4,194,304 are allowed" in text


def test_compression_that_is_unpacked_without_a_bound(archive):
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_BZIP2) as opened:
        opened.writestr("tiny-imagenet-200/other.txt", bytes(100))
    text = message(archive.parent)
    assert f"{archive} is cut short or damaged" in text and "other.txt is compressed by method 12" in text


def test_list_of_contents_longer_than_a_real_one(archive):
    length = 2**26 + 1
    with open(archive, "wb") as file:
        file.truncate(length)
        file.seek(length)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, length, 0, 0))
    assert "its list of contents has 67,108,865 bytes, more than 67,108,864" in message(archive.parent)


def test_name_that_is_no_text(archive):
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("tiny-imagenet-200/été.txt", b"")
    data = archive.read_bytes()
    archive.write_bytes(data.replace("été".encode(), b"\xff\xfe\xfft\xff"))
    assert f"{archive} is cut short or damaged (UnicodeDecodeError" in message(archive.parent)


def test_number_of_more_digits_than_python_reads(archive):
    name = f"train/n01/images/n01_{'7' * 5000}.JPEG"
    pack(archive, make_files() | {name: jpeg((7, 7, 7))})
    assert len(load("tiny_imagenet", dir=str(archive.parent), download=False).train_images) == 10


@pytest.mark.usefixtures("no_waiting")
def test_pipe_with_the_name_of_an_archive(tmp_path):
    os.mkfifo(tmp_path / "tiny-imagenet-200-subset.zip")
    assert "holds neither tiny-imagenet-200.zip nor" in message(tmp_path)
    os.mkfifo(tmp_path / "tiny-imagenet-200.zip")
    assert "tiny-imagenet-200.zip is not a regular file" in message(tmp_path)


@pytest.mark.usefixtures("no_waiting")
def test_pipe_among_the_files(archive, tmp_path):
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path / "plain")
    path = tmp_path / "plain/tiny-imagenet-200/val/val_annotations.txt"
    path.unlink()
    os.mkfifo(path)
    assert f"{path} cannot be read (it is a pipe, not a regular file)" in message(tmp_path / "plain")


def test_no_other_program_is_started(archive, ghostscript):
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n"
    pack(archive, make_files() | {"val/images/val_0.JPEG": eps})
    assert f"val/images/val_0.JPEG in {archive} cannot be read as an image" in message(archive.parent)
    assert not ghostscript.exists()


def test_spent_file_handles_are_no_damage(archive):
    with no_more_handles():
        text = message(archive.parent)
    assert f"{archive} cannot be read (Too many open files); allow more open files (ulimit -n)" in text
    check(load("tiny_imagenet", dir=str(archive.parent), download=False))


@pytest.mark.parametrize("inside", ["", "images/"])
def test_validation_sorted_into_classes(tmp_path, inside):
    files = make_files()
    lines = files.pop("val/val_annotations.txt").decode().splitlines()
    for name, wnid in (line.split("\t")[:2] for line in lines):
        files[f"val/{wnid}/{inside}{name}"] = files.pop(f"val/images/{name}")
    pack(tmp_path / "data/tiny-imagenet-200.zip", files)
    dataset = load("tiny_imagenet", dir=str(tmp_path / "data"), download=False)
    assert dataset.test_labels.tolist() == [0, 1, 1, 2]
    np.testing.assert_allclose(dataset.test_images[:, 1, 63, 0].astype(int), [100, 0, 150, 50], atol=3)
    del files[f"val/n03/{inside}val_1.JPEG"]
    pack(tmp_path / "other/tiny-imagenet-200.zip", files)
    assert "has no image in val/n03" in message(tmp_path / "other")
