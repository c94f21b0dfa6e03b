"""Runs whose images are read while they train: they end bit for bit as those whose images lie on the devices."""

import jax
import numpy as np
import pytest

from configs import resnet18_imagenet
from dctps_jax.errors import UserError
from dctps_jax.ops import target
from dctps_jax.training import streaming
from dctps_jax.training.placement import place_on_all_devices
from dctps_jax.training.run import run
from tests.data.image_files import encode, make_images, write_image_folder
from tests.killed_runs import run_through_kills, run_until_killed
from tests.small_runs import arrays, assert_same_end, rows, small_config, small_run

pytestmark = pytest.mark.usefixtures("small")


def assert_same_weights(workdir, expected):
    """Fingerprints are of files here and of images there; all else is the same."""
    assert rows(workdir) == rows(expected)
    found, wanted = arrays(workdir), arrays(expected)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert array.tobytes() == found[name].tobytes(), name


def test_a_streamed_run_stopped_in_an_epoch_ends_as_a_resident_one(tmp_path, plain):
    # After the save of step 2, and of step 8.
    run_through_kills(tmp_path, [2, 6], checkpoint_every_steps=2, data__streaming="on")
    assert_same_end(tmp_path, plain)


def test_on_two_devices_with_several_steps_a_dispatch_and_moving_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(target, "training_devices", lambda: jax.devices()[:2])
    options = {"steps_per_dispatch": 2, "sparse_training__method": "set", "sparse_training__update_every": 3}
    for name in ("off", "on"):
        small_run(tmp_path / name, data__streaming=name, data__mixup=0.2, eval_batch_size=16, **options)
    assert_same_end(tmp_path / "on", tmp_path / "off")


@pytest.fixture
def folder(tmp_path):
    images, labels = make_images(60, size=32)
    write_image_folder(tmp_path / "images", {"train": (images, labels), "val": make_images(9, size=32, seed=1)})
    return tmp_path / "images"


def options_of(folder, **more):
    return {"data__name": "image_folder", "data__dir": str(folder), "batch_size": 16, **more}


def test_files_are_decoded_while_training(tmp_path, folder):
    for name in ("off", "on"):
        small_run(tmp_path / name, **options_of(folder, data__streaming=name, pruning__method="snip"))
    assert_same_weights(tmp_path / "on", tmp_path / "off")


def test_a_broken_image_in_the_middle_of_an_epoch_is_named_and_mended(tmp_path, folder):
    options = options_of(folder, data__streaming="on", data__mean=(0.5,) * 3, data__std=(0.3,) * 3, num_epochs=1)
    small_run(tmp_path / "plain", **options)
    path = sorted(folder.glob("train/*/*.png"))[30]
    sound = path.read_bytes()
    path.write_bytes(sound[:100].ljust(len(sound), b"\0"))
    with pytest.raises(UserError, match=rf"{path} cannot be read as an image"):
        small_run(tmp_path / "run", checkpoint_every_steps=1, **options)
    path.write_bytes(sound)
    small_run(tmp_path / "run", checkpoint_every_steps=1, **options)
    assert_same_weights(tmp_path / "run", tmp_path / "plain")


def test_a_run_goes_on_reading_as_it_began(tmp_path, folder, monkeypatch):
    options = options_of(folder, num_epochs=1, checkpoint_every_steps=1)
    for name in ("on", "off"):
        run_until_killed(tmp_path / name, 2, data__streaming=name, **options)
    with pytest.raises(UserError, match=r"config\.data\.streaming is 'off', but the run began to read its files"):
        small_run(tmp_path / "on", data__streaming="off", **options)
    small_run(tmp_path / "off", data__streaming="on", **options)  # out of the decoded copy
    small_run(tmp_path / "on", data__streaming="auto", **options)
    assert_same_weights(tmp_path / "on", tmp_path / "off")


def test_auto_streams_what_takes_more_than_a_quarter_of_a_devices_memory(monkeypatch, digits):
    placement, config = place_on_all_devices(), small_config()
    assert not streaming.is_streamed(config, digits, placement)
    for memory, expected in ((4 * digits.num_bytes, False), (4 * digits.num_bytes - 4, True)):
        monkeypatch.setattr(streaming, "memory_of_a_device", lambda placement, memory=memory: memory)
        assert streaming.is_streamed(config, digits, placement) == expected
        for name, always in (("on", True), ("off", False)):
            config.data.streaming = name
            assert streaming.is_streamed(config, digits, placement) == always
        config.data.streaming = "auto"


def test_devices_of_a_cpu_share_its_memory(monkeypatch):
    whole = streaming.memory_of_a_device(place_on_all_devices())
    assert 2**27 < whole < 2**50
    monkeypatch.setattr(target, "training_devices", lambda: jax.devices()[:4])
    assert streaming.memory_of_a_device(place_on_all_devices()) == whole / 4


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data.image_size": 0}, r"config\.data\.image_size 0; give the size"),
        ({"data.streaming": "off"}, r"config\.data\.streaming 'off'; such crops"),
        ({"data.name": "cifar10"}, r"config\.data\.name 'cifar10'; such crops are taken out of image files"),
    ],
)
def test_random_resized_crops_need_files_and_a_size(tmp_path, fields, words):
    config = resnet18_imagenet.get_config()
    config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=words):
        run(config, tmp_path)


def test_the_config_of_imagenet_trains_on_a_small_folder(tmp_path):
    random = np.random.default_rng(0)
    for part, count in (("train", 20), ("val", 5)):
        for number in range(count):
            size = *random.integers(60, 100, 2), 3
            path = tmp_path / "images" / part / f"n{number % 2}" / f"{number}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(random.integers(0, 256, size, np.uint8), "JPEG"))
    config = resnet18_imagenet.get_config()
    fields = {
        "num_epochs": 2, "batch_size": 8, "eval_batch_size": 8, "model.width": 4, "data.image_size": 64,
        "data.dir": str(tmp_path / "images"), "data.train_fraction": 0.85, "optimizer.warmup_epochs": 1.0,
        "tensorboard": False, "execution.keep_memory": False, "checkpoint_every_steps": 1, "pruning.method": "snip",
    }  # fmt: skip
    config.update_from_flattened_dict(fields)
    results = run(config, tmp_path / "run")
    assert results["step"] == 4 and results["data"]["fit"] == "centre"
    assert len(rows(tmp_path / "run")) == 2
