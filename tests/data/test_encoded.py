"""Images that are decoded whenever they are asked for: those of the decoded copy, out of every source of files."""

import io
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from dctps_jax.data import load
from dctps_jax.data.dataset import FILES
from dctps_jax.errors import UserError
from tests.data.image_files import WRITERS, encode, make_images, write_image_folder, write_webdataset_folder

TRAIN, TEST = make_images(13), make_images(4, seed=1)


def write(name, folder):
    folder.mkdir(exist_ok=True)
    WRITERS[name](folder, {"train": TRAIN, "val": TEST})
    return folder


def when_read(name, folder, **options):
    return load(name, dir=str(folder), max_decoded_bytes=0, **options)


def message(name, folder, **options):
    with pytest.raises(UserError) as caught:
        when_read(name, folder, **options)
    return str(caught.value)


@pytest.mark.parametrize("name", WRITERS)
def test_images_are_those_of_the_decoded_copy(name, tmp_path):
    folder = write(name, tmp_path / "images")
    decoded, read = load(name, dir=str(folder)), when_read(name, folder)
    np.testing.assert_array_equal(decoded.train_images, TRAIN[0])
    assert decoded.is_decoded and not read.is_decoded and read.num_bytes == 17 * 8 * 8 * 3
    assert read.class_names == decoded.class_names and read.train_images.shape == decoded.train_images.shape
    rows = np.array([12, 0, 5, 5, 1])
    for part in ("train", "test"):
        images = getattr(pickle.loads(pickle.dumps(read)), f"{part}_images")  # as it goes to another process
        wanted = getattr(decoded, f"{part}_images")
        np.testing.assert_array_equal(images[rows % len(wanted)], wanted[rows % len(wanted)])
        np.testing.assert_array_equal(images[:3], wanted[:3])
        np.testing.assert_array_equal(getattr(read, f"{part}_labels"), getattr(decoded, f"{part}_labels"))
    assert when_read(name, folder, image_size=5, channels=1).train_images[:2].shape == (2, 5, 5, 1)
    assert load(name, dir=str(folder), max_decoded_bytes=17 * 8 * 8 * 3).is_decoded


@pytest.mark.parametrize("name", WRITERS)
def test_fingerprint_is_of_the_files_wherever_they_lie(name, tmp_path):
    folder = write(name, tmp_path / "images")
    first = when_read(name, folder).fingerprint
    assert first.startswith(FILES)
    moved = folder.rename(tmp_path / "moved")
    assert when_read(name, moved).fingerprint == first
    WRITERS[name](moved, {"train": make_images(14)})
    assert when_read(name, moved).fingerprint != first


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_without_images(name, tmp_path):
    text = message(name, tmp_path)
    assert str(tmp_path) in text and "data.dir" in text


def test_a_directory_of_tfds(tmp_path):
    from tests.data.test_tfds_source import prepare

    prepare(tmp_path)
    decoded, read = load("tfds_folder", dir=str(tmp_path)), when_read("tfds_folder", tmp_path)
    np.testing.assert_array_equal(read.train_images[:], decoded.train_images)
    np.testing.assert_array_equal(read.train_labels, decoded.train_labels)


def test_an_image_that_cannot_be_decoded_is_named(tmp_path):
    images, labels = TRAIN
    write_image_folder(tmp_path, {"train": (images, labels), "val": TEST})
    (tmp_path / "train/bee/0006.png").write_bytes(b"no image")
    Image.new("RGB", (9, 8)).save(tmp_path / "train/bee/0007.png")
    read = when_read("image_folder", tmp_path).train_images
    read[np.array([0, 5])]
    with pytest.raises(UserError, match=r"train/bee/0006\.png cannot be read as an image"):
        read[np.array([0, 6])]
    with pytest.raises(UserError, match=r"train/bee/0007\.png is 9 x 8 pixels, but must be 8 x 8; set config"):
        read[np.array([7])]


def test_names_of_classes_in_a_file(tmp_path):
    write("webdataset_folder", tmp_path)
    (tmp_path / "classes.txt").write_text("ape\nbee\ncat\n")
    assert when_read("webdataset_folder", tmp_path).class_names == ("ape", "bee", "cat")
    (tmp_path / "classes.txt").write_text("ape\nbee\n")
    assert "labels from 0 to 2, but they must be numbers of classes from 0 to 1" in message(
        "webdataset_folder", tmp_path
    )


def test_tar_files_that_cannot_be_indexed(tmp_path):
    write("webdataset_folder", tmp_path)
    write_webdataset_folder(tmp_path, {"train": TRAIN}, labelled=False)
    assert (
        "0000.png in" in (said := message("webdataset_folder", tmp_path)) and "train-000.tar has no label; add" in said
    )
    with tarfile.open(tmp_path / "train-000.tar", "w:gz") as tar:
        tar.add(tmp_path / "val-000.tar", "0.png")
    assert "train-000.tar is compressed; uncompress it" in message("webdataset_folder", tmp_path)
    (tmp_path / "train-000.tar").rename(tmp_path / "train-000.tar.gz")
    assert "train-000.tar.gz is compressed; uncompress it and the others" in message("webdataset_folder", tmp_path)


def test_a_tar_file_that_was_cut_off_or_joined_is_refused(tmp_path):
    write("webdataset_folder", tmp_path)
    path = tmp_path / "train-000.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        end = tar.getmembers()[-1].offset_data + 512  # of the last label
        second = tar.getmembers()[2].offset
    for size in (second, second + 100, second + 600, end, end + 100, end + 511):
        path.write_bytes(whole[:size])
        assert "train-000.tar is cut short or damaged" in message("webdataset_folder", tmp_path), size
    path.write_bytes(whole[:second] + b"x" * 512 + whole[second + 512 :])
    assert "train-000.tar is cut short or damaged" in message("webdataset_folder", tmp_path)
    path.write_bytes(whole + whole)
    assert "something follows its end" in message("webdataset_folder", tmp_path)
    path.write_bytes(whole[: end + 512])  # one block of zeros is an end
    assert len(when_read("webdataset_folder", tmp_path).train_labels) == 13


@pytest.mark.parametrize(("label", "part"), [(b"cat", "holds b'cat'; it must hold the number"), (b"-1", "holds -1")])
def test_a_label_in_a_tar_file_is_a_number(tmp_path, label, part):
    write("webdataset_folder", tmp_path)
    with tarfile.open(tmp_path / "train-000.tar", "w") as tar:
        member = tarfile.TarInfo("0000.cls")
        member.size = len(label)
        tar.addfile(member, io.BytesIO(label))
    assert "0000.cls in " in (said := message("webdataset_folder", tmp_path)) and part in said


def test_a_record_without_an_image(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    write("array_record_folder", tmp_path)
    writer = ArrayRecordWriter(str(tmp_path / "train.array_record-00001-of-00002"), "group_size:1")
    writer.write(b"\0\0\0\0")
    writer.close()
    assert "a record has 4 bytes" in message("array_record_folder", tmp_path)


OPTIONS = {"image_size": 16, "crop": "random_resized", "fit": "centre"}


def ramps(folder):
    """Images whose red is the column and whose green is the row."""
    image = np.zeros((64, 96, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(96)[None] * 2, np.arange(64)[:, None] * 3
    for number in range(6):
        for part in ("train", "val"):
            path = folder / part / "a" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(image))
    return folder


def test_crops_depend_on_seed_epoch_and_row(tmp_path):
    folder, rows = ramps(tmp_path), np.arange(6)
    images = when_read("image_folder", folder, seed=3, **OPTIONS).train_images
    again = when_read("image_folder", folder, seed=3, **OPTIONS).train_images
    epoch = images.in_epoch(2)[rows]
    np.testing.assert_array_equal(epoch[[4, 1]], again.in_epoch(2)[np.array([4, 1])])
    others = [
        images.in_epoch(3)[rows],
        when_read("image_folder", folder, seed=4, **OPTIONS).train_images.in_epoch(2)[rows],
    ]
    crops = {image.tobytes() for part in (epoch, *others) for image in part}
    assert len(crops) == 18  # no two are the same
    # The middle of the middle, in every epoch, is what is tested on: columns 20 to 76 and rows 4 to 60, 3.5 a pixel.
    middle = images[rows]
    assert len({image.tobytes() for image in middle}) == 1
    np.testing.assert_allclose(middle[0, 8, [0, 15], 0], [2 * 21.25, 2 * 73.75], atol=2)
    np.testing.assert_allclose(middle[0, [0, 15], 8, 1], [3 * 5.25, 3 * 57.75], atol=2)


def test_without_such_crops_all_epochs_are_the_same(tmp_path):
    images = when_read("image_folder", ramps(tmp_path), image_size=16).train_images
    np.testing.assert_array_equal(images.in_epoch(0)[:], images.in_epoch(1)[:])
