import os
import socket

import numpy as np
import pytest
from PIL import Image

from dctps_jax.data import load
from dctps_jax.errors import UserError
from tests.limits import no_more_handles


def put(path, value, size=(8, 8), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    put(root / "train/zebra/b.png", (1, 2, 3))
    put(root / "train/zebra/a.BMP", (4, 5, 6))
    put(root / "train/ape/x.png", 9, mode="L")
    put(root / "train/ape/y.PNG", (7, 8, 9, 255), mode="RGBA")
    put(root / "test/zebra/t.png", (11, 12, 13))
    (root / "train/zebra/notes.txt").write_text("no image")
    (root / "train/zebra/.hidden.png").write_bytes(b"no image")
    (root / "train/.DS_Store").touch()
    (root / "train/.thumbs").mkdir()
    return root


def message(folder, **options):
    with pytest.raises(UserError) as caught:
        load("image_folder", dir=str(folder), **options)
    return str(caught.value)


def test_images_labels_and_names(folder):
    for _ in range(2):  # decoded, then from the cache
        dataset = load("image_folder", dir=str(folder))
        assert dataset.class_names == ("ape", "zebra")
        assert dataset.train_labels.tolist() == [0, 0, 1, 1]
        assert dataset.train_images[:, 3, 4].tolist() == [[9, 9, 9], [7, 8, 9], [4, 5, 6], [1, 2, 3]]
        assert dataset.test_labels.tolist() == [1]
        assert dataset.test_images[0, 0, 0].tolist() == [11, 12, 13]
        assert dataset.train_images.shape == (4, 8, 8, 3) and dataset.mean is None
        assert isinstance(dataset.train_images, np.memmap) and not dataset.train_images.flags.writeable


def test_a_change_is_noticed(folder):
    load("image_folder", dir=str(folder))
    put(folder / "train/ape/z.png", (50, 51, 52))
    assert load("image_folder", dir=str(folder)).train_images[2, 0, 0].tolist() == [50, 51, 52]


def test_fingerprint_is_of_the_images_not_of_the_files(folder, tmp_path):
    first = load("image_folder", dir=str(folder)).fingerprint
    assert load("image_folder", dir=str(folder)).fingerprint == first  # of the decoded copy
    folder = folder.rename(tmp_path / "moved")
    (folder / "train/ape/x.png").touch()
    assert load("image_folder", dir=str(folder)).fingerprint == first
    (folder / "train/ape/x.png").rename(folder / "train/ape/xx.png")
    assert load("image_folder", dir=str(folder)).fingerprint == first
    put(folder / "train/ape/x.png", 10, mode="L")
    assert load("image_folder", dir=str(folder)).fingerprint != first


def test_resizing(folder):
    put(folder / "test/ape/wide.png", (40, 40, 40), size=(20, 10))
    text = message(folder)
    assert "wide.png is 20 x 10" in text and "8 x 8" in text and "data.image_size" in text
    dataset = load("image_folder", dir=str(folder), image_size=4)
    assert dataset.image_size == 4
    assert dataset.test_images[0, 1, 2].tolist() == [40, 40, 40]
    assert load("image_folder", dir=str(folder), image_size=6).image_size == 6


def test_what_is_passed_over_is_printed(folder, capsys):
    put(folder / "train/ape/more/a.tif", (0, 0, 0))
    put(folder / "train/ape/more/still/b.gif", (0, 0, 0))
    put(folder / "test/loose.png", (0, 0, 0))
    for _ in range(2):  # decoded, then from the cache
        load("image_folder", dir=str(folder))
        lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("decoding ")]
        assert lines == [
            f"{folder}: passed over, hidden: 3 (train/.DS_Store, train/.thumbs, train/zebra/.hidden.png)",
            f"{folder}: passed over, in a folder inside a class: 2 (train/ape/more/a.tif, train/ape/more/still/b.gif)",
            f"{folder}: passed over, not named as an image: 1 (train/zebra/notes.txt)",
            f"{folder}: passed over, in no folder of a class: 1 (test/loose.png)",
        ]


def test_images_of_another_shape_are_brought_to_size_as_asked(folder):
    put(folder / "test/ape/wide.png", (40, 40, 40), size=(20, 10))
    first_pixels = {
        fit: load("image_folder", dir=str(folder), image_size=4, fit=fit).test_images[0, 0, 0].tolist()
        for fit in ("squash", "crop", "pad")
    }
    assert first_pixels == {"squash": [40, 40, 40], "crop": [40, 40, 40], "pad": [255, 255, 255]}


def test_images_keep_their_shape_if_they_all_have_it(tmp_path):
    for place in ("train/ape/a.png", "train/ape/b.png", "test/ape/c.png"):
        put(tmp_path / place, (10, 20, 30), size=(12, 9))
    dataset = load("image_folder", dir=str(tmp_path))
    assert dataset.image_size == (9, 12) and dataset.train_images.shape == (2, 9, 12, 3)
    put(tmp_path / "test/ape/d.png", (0, 0, 0), size=(9, 12))
    text = message(tmp_path)
    assert "d.png is 9 x 12 pixels, but must be 12 x 9" in text and "data.image_size" in text


def test_grey_images(folder):
    colour = load("image_folder", dir=str(folder))
    grey = load("image_folder", dir=str(folder), channels=1)
    assert grey.channels == 1 and grey.train_images.shape == (4, 8, 8, 1)
    assert grey.train_images[0, 0, 0].tolist() == [9]  # stored as grey
    assert load("image_folder", dir=str(folder)).fingerprint == colour.fingerprint  # copies of their own


def test_class_that_train_lacks(folder):
    put(folder / "test/lion/t.png", (0, 0, 0))
    text = message(folder)
    assert "lion" in text and "train lacks" in text and "ape, zebra" in text


@pytest.mark.parametrize("part", ["train", "test"])
def test_empty_class(folder, part):
    (folder / part / "empty").mkdir()
    (folder / part / "empty/readme.txt").touch()
    assert f"{part}/empty holds no image" in message(folder)


def test_missing_folders(folder, tmp_path):
    (folder / "test").rename(folder / "valid")
    text = message(folder)
    assert str(folder / "test") in text and "data.dir must hold" in text
    (folder / "test").mkdir()
    assert "holds no class folder" in message(folder)
    assert "nowhere/train" in message(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n\0\0"])
def test_unreadable_image(folder, content, home):
    (folder / "train/zebra/c.png").write_bytes(content)
    assert "train/zebra/c.png cannot be read as an image" in message(folder)
    assert not list((home / ".cache/dctps_jax/decoded").iterdir())


def test_dangling_link_is_named(folder):
    (folder / "train/ape/gone.png").symlink_to("nowhere.png")
    assert "train/ape/gone.png cannot be read" in message(folder)


def test_gif_and_tiff_are_images_too(folder):
    for name in ("m.gif", "n.TIF", "o.tiff"):
        put(folder / "train/ape" / name, (100, 100, 100))
    dataset = load("image_folder", dir=str(folder))
    assert dataset.train_images[:5, 0, 0, 0].tolist() == [100, 100, 100, 9, 7]


def test_no_other_program_is_started(folder, ghostscript):
    (folder / "train/ape/a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    assert "train/ape/a.png cannot be read as an image" in message(folder)
    assert not ghostscript.exists()


@pytest.mark.parametrize("kind", ["a pipe", "a socket", "a device"])
@pytest.mark.usefixtures("no_waiting")
def test_regular_files_only(folder, kind, monkeypatch):
    path = folder / "train/ape/0.png"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        monkeypatch.chdir(path.parent)  # the address of a socket is short
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
    else:
        path.symlink_to("/dev/null")
    assert f"{path} cannot be read (it is {kind}, not a regular file)" in message(folder)


def test_many_pixels(folder):
    put(folder / "train/ape/0.png", (1, 2, 3), size=(100, 100))
    text = message(folder, image_size=8, max_pixels=9999)
    assert "0.png has 100 x 100 pixels, but config.data.max_pixels allows 9,999" in text
    assert load("image_folder", dir=str(folder), image_size=8, max_pixels=10000).train_images.shape[1] == 8
    assert "data.image_size is 101" in message(folder, image_size=101, max_pixels=10000)


def test_file_longer_than_its_pixels_can_need(folder):
    with open(folder / "train/ape/0.png", "ab") as file:
        file.truncate(2**20 + 801)
    assert "0.png has 1,049,377 bytes, but at most 1,049,376 are allowed" in message(folder, max_pixels=100)


def test_names_that_are_no_text(folder):
    os.rename(folder / "train/ape/x.png", os.path.join(os.fsencode(folder), b"train/ape/\xff.png"))
    assert len(load("image_folder", dir=str(folder)).train_images) == 4
    os.rename(folder / "train/ape", os.path.join(os.fsencode(folder), b"train/\xe9t\xe9"))
    assert "is a class folder whose name is not UTF-8" in message(folder)


def test_spent_file_handles_are_named(folder, home):
    load("image_folder", dir=str(folder))
    copies = sorted((home / ".cache/dctps_jax/decoded").glob("*/*"))
    with no_more_handles():
        text = message(folder)
    assert "Too many open files" in text and "ulimit -n" in text
    assert sorted((home / ".cache/dctps_jax/decoded").glob("*/*")) == copies
