import contextlib
import io
import json
import logging
import multiprocessing
import os
import pickle
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from dctps_jax.data import cache
from dctps_jax.data.dataset import Decoded, DecodedPart, Options
from dctps_jax.errors import DiskFull, UserError
from tests.limits import no_more_handles, no_room

FILES = ["train_images.npy", "train_labels.npy", "test_images.npy", "test_labels.npy", "meta.json"]


def decode(value=7):
    def split(count):
        blocks = (np.full((1, 4, 4, 3), value + index, np.uint8) for index in range(count))
        return DecodedPart(np.arange(count, dtype=np.int32), 4, blocks)

    return Decoded(split(3), split(2), ("a", "b", "c"))


def never():
    raise AssertionError("decoded although there is a copy")


def read(options, decoder=decode, stamp="0123456789abcdef"):
    return cache.cached("toy", Path("/the/source"), stamp, options, decoder)


@pytest.fixture
def options(tmp_path):
    (tmp_path / "data").mkdir()
    return Options(tmp_path / "data")


def copy_of(options):
    return copies() / "toy-0123456789ab"


def copies():
    return Path.home() / ".cache/dctps_jax/decoded"


def test_first_decoded_then_read(options, caplog):
    for decoder in (decode, never):
        train_images, train_labels, test_images, test_labels, names = read(options, decoder)
        assert train_images[:, 0, 0, 0].tolist() == [7, 8, 9] and train_images.shape == (3, 4, 4, 3)
        assert test_images[:, 3, 3, 2].tolist() == [7, 8]
        assert train_labels.tolist() == [0, 1, 2] and test_labels.dtype == np.int32
        assert names == ("a", "b", "c")
        assert isinstance(train_images, np.memmap) and not train_images.flags.writeable
    assert sorted(os.listdir(copy_of(options))) == sorted(FILES)
    assert not caplog.records


def test_another_stamp_is_decoded_anew(options):
    read(options)
    assert read(options, lambda: decode(50), "fedcba9876543210")[0][0, 0, 0, 0] == 50
    assert len(list(copies().iterdir())) == 2


def test_cache_dir_is_taken(options, tmp_path):
    read(Options(options.dir, tmp_path / "deep/er"))
    assert (tmp_path / "deep/er/toy-0123456789ab/meta.json").is_file()
    assert not list(options.dir.iterdir())


def test_the_place_is_printed_and_not_the_users_folder(options, home, monkeypatch, capsys):
    read(options)
    assert not list(options.dir.iterdir())
    assert str(home / ".cache/dctps_jax/decoded/toy-0123456789ab") in capsys.readouterr().out
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "elsewhere"))
    read(options)
    assert (home / "elsewhere/dctps_jax/decoded/toy-0123456789ab/meta.json").is_file()


def test_copy_beside_the_images_of_version_0_1_0_is_used(options):
    read(options)
    (options.dir / ".dctps_cache").mkdir()
    copy_of(options).rename(options.dir / ".dctps_cache" / copy_of(options).name)
    read(options, never)
    assert not list(copies().iterdir())


def test_cache_dir_that_cannot_be_made(options, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/toy-0123456789ab.*data\.cache_dir"):
        read(Options(options.dir, tmp_path / "file"))


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *[(file, lambda path: flip(path, -1)) for file in FILES[:4]],
        *[(file, lambda path: flip(path, 20)) for file in FILES[:4]],
        *[(file, lambda path: path.write_bytes(path.read_bytes()[:-3])) for file in FILES],
        *[(file, lambda path: path.unlink()) for file in FILES],
        *[(file, lambda path: path.write_bytes(b"")) for file in FILES],
        ("meta.json", lambda path: path.write_text(path.read_text().replace('"a"', '"x"'))),
        ("meta.json", lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 0}))),
        ("meta.json", lambda path: path.write_text("[]")),
        ("meta.json", lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"crc32": None}))),
        ("meta.json", lambda path: path.write_text("{}")),
    ],
)
def test_damage_is_reported_and_mended(options, caplog, file, damage):
    read(options)
    damage(copy_of(options) / file)
    assert read(options)[0][:, 0, 0, 0].tolist() == [7, 8, 9]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and record.name == "dctps_jax"
    assert str(copy_of(options) / file) in record.getMessage() and "/the/source" in record.getMessage()
    read(options, never)


def test_without_source(options):
    assert cache.cached_without_source("toy", options) is None
    read(options)
    arrays = cache.cached_without_source("toy", options)
    assert arrays is not None and arrays[1].tolist() == [0, 1, 2]
    assert cache.cached_without_source("to", options) is None
    other = Options(options.dir.parent, copy_of(options).parent)
    assert cache.cached_without_source("toy", other) is None
    flip(copy_of(options) / "test_images.npy", 200)
    with pytest.raises(UserError, match=r"test_images\.npy is damaged.*data\.dir"):
        cache.cached_without_source("toy", options)
    assert copy_of(options).is_dir()
    read(options, stamp="another")
    assert cache.cached_without_source("toy", options) is None


def test_decoder_that_fails_leaves_nothing(options):
    def blocks():
        yield np.zeros((1, 4, 4, 3), np.uint8)
        raise UserError("image 2 is damaged")

    good = decode()
    broken = Decoded(DecodedPart(good.train.labels, 4, blocks()), good.test, good.class_names)
    with pytest.raises(UserError, match="image 2"):
        read(options, lambda: broken)
    assert not list(copies().iterdir())


def wait_and_kill(options):
    def blocks():
        yield np.zeros((1, 4, 4, 3), np.uint8)
        os._exit(9)

    good = decode()
    read(options, lambda: Decoded(DecodedPart(good.train.labels, 4, blocks()), good.test, good.class_names))


def test_killed_decode_leaves_no_copy_and_its_draft_is_removed_later(options):
    process = multiprocessing.get_context("spawn").Process(target=wait_and_kill, args=(options,))
    process.start()
    process.join()
    assert process.exitcode == 9
    (draft,) = copies().iterdir()
    assert draft != copy_of(options) and not copy_of(options).exists()

    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(draft, (two_days_ago, two_days_ago))
    read(options)
    assert list(copies().iterdir()) == [copy_of(options)]


def test_second_of_two_decoders_takes_the_copy_of_the_first(options):
    def slow():
        read(options, decode)  # the other run finishes while this one is still decoding
        return decode(100)

    assert read(options, slow)[0][0, 0, 0, 0] == 7
    assert list(copies().iterdir()) == [copy_of(options)]


def load_and_report(options, barrier, queue):
    barrier.wait()
    queue.put(read(options)[0][:, 0, 0, 0].tolist())


def test_processes_that_decode_at_once(options):
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(3), context.Queue()
    processes = [context.Process(target=load_and_report, args=(options, barrier, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=60) for _ in processes] == [[7, 8, 9]] * 3
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert list(copies().iterdir()) == [copy_of(options)]


def test_full_disk_is_one_sentence_with_folder_and_bytes(options):
    out = io.StringIO()  # not a file without room
    with no_room(150), contextlib.redirect_stdout(out), pytest.raises(DiskFull) as caught:
        read(options)
    folder = copies()
    # 3 and 2 images of 48 bytes, with labels of 4.
    assert f"the decoded copy of /the/source needs 260 bytes in {folder}, which has no room" in str(caught.value)
    assert "data.cache_dir" in str(caught.value) and caught.value.exit_code == 74
    assert not list(folder.iterdir())
    assert read(options)[1].tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["", "toy-0123456789ab"])
def test_file_in_the_place_of_a_folder(options, name):
    path = copies() / name
    path.parent.mkdir(parents=True)
    path.write_text("of a user")
    with pytest.raises(UserError, match=rf"{path} is a file.*data\.cache_dir"):
        read(options)
    assert path.read_text() == "of a user"


def test_sound_copy_is_kept_while_no_file_can_be_opened(options, caplog):
    read(options)
    with (
        no_more_handles(),
        pytest.raises(UserError, match=r"meta\.json cannot be read \(Too many open files\).*ulimit"),
    ):
        read(options, never)
    read(options, never)
    assert not caplog.records


def forge(options, arrays=(), **changes):
    """Give a copy another content, with checksums that agree."""
    folder = copy_of(options)
    meta = json.loads((folder / "meta.json").read_text())
    for name, content in dict(arrays).items():
        (folder / f"{name}.npy").write_bytes(content)
        meta["crc32"][name] = zlib.crc32(content)
    meta |= changes
    meta = {key: value for key, value in meta.items() if value is not None and key != "meta_crc32"}
    meta["meta_crc32"] = zlib.crc32(json.dumps(meta, sort_keys=True).encode())
    (folder / "meta.json").write_text(json.dumps(meta))


def saved(save, *arrays, **options):
    file = io.BytesIO()
    save(file, *arrays, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "forged",
    [
        {"class_names": 5},
        {"class_names": [1, 2, 3]},
        {"class_names": "abc"},
        {"class_names": None},
        {"crc32": [1]},
        {"source_dir": None},
        {"arrays": {"train_images": saved(np.savez, np.zeros(3))}},
        {"arrays": {"train_images": pickle.dumps([1])}},
        {"arrays": {"train_images": saved(np.save, np.array([None]), allow_pickle=True)}},
        {"arrays": {"train_images": saved(np.save, np.zeros((3, 4, 4, 3)))}},
        {"arrays": {"test_labels": saved(np.save, np.zeros((2, 1), np.int32))}},
        {"arrays": {"test_images": saved(np.save, np.zeros((2, 4, 4, 3), np.uint8)).replace(b"(2, 4", b"(9**9, 4")}},
        {"arrays": {"test_images": saved(np.save, np.zeros((2, 4, 4, 3), np.uint8)).replace(b"(2,", b"-2,")}},
    ],
)
def test_foreign_content_with_right_checksums_is_reported_and_mended(options, caplog, forged):
    read(options)
    forge(options, **forged)
    assert read(options)[0][:, 0, 0, 0].tolist() == [7, 8, 9]
    (record,) = caplog.records
    assert str(copy_of(options)) in record.getMessage()


def test_copy_of_another_source_under_this_ones_name_is_made_again(options, caplog):
    read(options, lambda: decode(50), "fedcba9876543210")
    (copies() / "toy-fedcba987654").rename(copy_of(options))
    assert read(options)[0][:, 0, 0, 0].tolist() == [7, 8, 9]
    assert "the copy of another source" in caplog.text


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("file", ["meta.json", "test_labels.npy"])
def test_pipe_in_a_copy_is_reported_and_mended(options, caplog, file):
    read(options)
    (copy_of(options) / file).unlink()
    os.mkfifo(copy_of(options) / file)
    assert read(options)[1].tolist() == [0, 1, 2]
    assert "a pipe" in caplog.text


def test_json_deeper_than_python_reads(options, caplog):
    read(options)
    (copy_of(options) / "meta.json").write_text("[" * 100_000)
    assert read(options)[1].tolist() == [0, 1, 2]
    assert "meta.json is damaged" in caplog.text
