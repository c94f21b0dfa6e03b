"""The directories are written by TFDS itself, with the features of its own CIFAR-10, and without TensorFlow."""

import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

from dctps_jax.data import load
from dctps_jax.errors import UserError
from tests.limits import no_more_handles

RECORDS = "cifar10-{}.array_record-00000-of-00001"
NAMES = [f"name{label}" for label in range(10)]
TRAIN = np.random.default_rng(1).integers(0, 256, (30, 32, 32, 3), np.uint8)
TEST = np.random.default_rng(2).integers(0, 256, (10, 32, 32, 3), np.uint8)


def prepare(folder, size=32, names=NAMES, first=None):
    """Have TFDS write the images; ``first`` is a file to take for the first of each split."""
    import tensorflow_datasets as tfds

    class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        __module__ = "no_package"  # from a package, TFDS would want importlib_resources
        VERSION = tfds.core.Version("3.0.2")

        def _info(self):
            features = {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(shape=(size, size, 3)),
                "label": tfds.features.ClassLabel(names=names),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(TRAIN), "test": self._generate_examples(TEST)}

        def _generate_examples(self, images):
            for index, image in enumerate(images):
                picture = first if first and not index else Image.fromarray(image[:size, :size])
                yield index, {"id": str(index), "image": picture, "label": index % len(names)}

    builder = Cifar10(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return folder / "cifar10/3.0.2"


@pytest.fixture
def prepared(tmp_path):
    return prepare(tmp_path / "data")


def message(folder):
    with pytest.raises(UserError) as caught:
        load("cifar10", dir=str(folder), download=False)
    return str(caught.value)


def check(dataset):
    # TFDS shuffles on writing: images are found by their content.
    for images, labels, wanted in (
        (dataset.train_images, dataset.train_labels, TRAIN),
        (dataset.test_images, dataset.test_labels, TEST),
    ):
        index = {image.tobytes(): number for number, image in enumerate(wanted)}
        order = [index[image.tobytes()] for image in images]
        assert sorted(order) == list(range(len(wanted)))
        assert labels.tolist() == [number % 10 for number in order]


@pytest.mark.parametrize("inside", [False, True])
def test_prepared_directory(prepared, tmp_path, inside):
    for _ in range(2):  # decoded, then from the cache
        dataset = load("cifar10", dir=str(prepared if inside else tmp_path / "data"), download=False)
        check(dataset)
        assert dataset.class_names == tuple(NAMES)
        assert dataset.mean == (0.4914, 0.4822, 0.4465)
    assert "tensorflow" not in sys.modules


def test_it_goes_before_a_damaged_archive(prepared, tmp_path):
    (tmp_path / "data/cifar-10-binary.tar.gz").write_bytes(b"damaged")
    check(load("cifar10", dir=str(tmp_path / "data"), download=False))


def test_newest_version_is_taken(prepared, tmp_path):
    for version in ("3.0.10", "3.0.1"):
        (prepared.parent / version).mkdir()
        (prepared.parent / version / "dataset_info.json").write_text("{}")
    assert "3.0.10/dataset_info.json gives no name" in message(tmp_path / "data")


def edit_info(prepared, **changes):
    path = prepared / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_tfrecord_is_passed_over_with_a_warning(prepared, tmp_path, caplog):
    edit_info(prepared, fileFormat="tfrecord")
    text = message(tmp_path / "data")
    assert "cifar-10-binary.tar.gz" in text
    assert str(prepared) in caplog.text and "tfrecord" in caplog.text and "array_record" in caplog.text


def test_another_data_set(prepared):
    edit_info(prepared, name="mnist")
    text = message(prepared)
    assert "'mnist'" in text and "'cifar10'" in text and "data.dir" in text


@pytest.mark.parametrize("file", [RECORDS.format("train"), RECORDS.format("test")])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.95])
def test_records_cut_short(prepared, file, keep):
    data = (prepared / file).read_bytes()
    (prepared / file).write_bytes(data[: int(keep * len(data))])
    assert str(prepared) in message(prepared)


@pytest.mark.parametrize("where", [0.05, 0.5])
def test_records_with_flipped_bytes(prepared, where):
    path = prepared / RECORDS.format("train")
    data = bytearray(path.read_bytes())
    position = int(where * len(data))
    data[position] ^= 0xFF
    path.write_bytes(data)
    assert str(path) in message(prepared)


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json", RECORDS.format("test")])
@pytest.mark.parametrize("content", [None, b"{", b'{"name": 3}'])
def test_missing_or_foreign_file(prepared, file, content):
    (prepared / file).unlink()
    if content is not None:
        (prepared / file).write_bytes(content)
    assert str(prepared) in message(prepared)


def test_wrong_size_and_wrong_number_of_classes(tmp_path):
    assert "is 16 x 16 pixels, but must be 32 x 32" in message(prepare(tmp_path / "small", size=16))
    text = message(prepare(tmp_path / "few", names=NAMES[:5]))
    assert "5 class names" in text and "10" in text


FEATURES = "tensorflow_datasets.core.features"
EVIL = {"pythonClassName": "evil_module.Feature", "jsonFeature": {"json": "{}"}}


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """The file that a module in Python's path leaves when it is imported."""
    path = tmp_path / "imported"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/evil_module.py").write_text(f"open({str(path)!r}, 'w').close()")
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    return path


@pytest.mark.parametrize(
    "feature",
    [
        EVIL,
        {"python_class_name": "evil_module.Feature", "jsonFeature": {"json": "{}"}},
        {"type": "evil_module.Feature", "content": {}},
        {"pythonClassName": f"{FEATURES}.sequence_feature.Sequence", "sequence": {"feature": EVIL, "length": "-1"}},
        {"pythonClassName": f"{FEATURES}.features_dict.FeaturesDict", "featuresDict": {"features": {"deep": EVIL}}},
    ],
)
def test_features_of_other_packages_are_not_imported(prepared, imported, feature):
    path = prepared / "features.json"
    features = json.loads(path.read_text())
    features["featuresDict"]["features"]["id"] = feature
    path.write_text(json.dumps(features))
    text = message(prepared)
    assert f"{path} asks for the Python class 'evil_module.Feature'" in text and FEATURES in text
    assert not imported.exists()


def test_nothing_else_of_a_directory_is_imported(prepared, imported, tmp_path):
    path = prepared / "features.json"
    features = json.loads(path.read_text())
    hidden = json.dumps({"feature": EVIL, "length": None})
    features["featuresDict"]["features"]["id"] = {
        "pythonClassName": f"{FEATURES}.sequence_feature.Sequence",
        "jsonFeature": {"json": hidden},
    }
    path.write_text(json.dumps(features))
    edit_info(prepared, features=EVIL, moduleName="evil_module")
    check(load("cifar10", dir=str(tmp_path / "data"), download=False))
    assert not imported.exists()


def test_no_other_program_is_started(tmp_path, ghostscript):
    picture = tmp_path / "x.png"
    picture.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n")
    text = message(prepare(tmp_path / "data", first=str(picture)))
    assert "cannot be read as an image (not one of PNG" in text
    assert not ghostscript.exists()


def test_records_and_their_number_have_to_agree(prepared):
    info = json.loads((prepared / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = ["29"]
    edit_info(prepared, splits=info["splits"])
    assert "it has 30 records, but dataset_info.json says 29" in message(prepared)


@pytest.mark.parametrize(
    ("names", "found"),
    [(None, "No such file"), (["a"] * 10, "(1 different ones)"), (NAMES[:9], "9 class names"), (["\udcff"], "damaged")],
)
def test_class_names(prepared, names, found):
    path = prepared / "label.labels.txt"
    path.unlink()
    if names is not None:
        path.write_bytes("\n".join(names).encode(errors="surrogateescape"))
    text = message(prepared)
    assert str(path) in text and found in text


def test_byte_order_mark_is_no_part_of_a_name(prepared):
    (prepared / "label.labels.txt").write_text("\n".join(NAMES), encoding="utf-8-sig")
    assert load("cifar10", dir=str(prepared), download=False).class_names == tuple(NAMES)


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("file", ["dataset_info.json", "features.json", "label.labels.txt", RECORDS.format("test")])
def test_pipe_in_the_place_of_a_file(prepared, file):
    (prepared / file).unlink()
    os.mkfifo(prepared / file)
    assert f"{prepared / file} cannot be read (it is a pipe, not a regular file)" in message(prepared)


def test_json_deeper_than_python_reads(prepared):
    for file in ("features.json", "dataset_info.json"):
        (prepared / file).write_text("[" * 100_000)
        assert f"{prepared / file} is cut short or damaged (RecursionError" in message(prepared)


def test_spent_file_handles_are_no_damage(prepared):
    load("cifar10", dir=str(prepared), cache_dir=str(prepared / "elsewhere"), download=False)
    with no_more_handles():
        text = message(prepared)
    assert "Too many open files" in text and "ulimit -n" in text
