"""Images of the user's own as they lie on a disk: .npz, parquet files of the Hub, directories of TFDS."""

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dctps_jax.data import load
from dctps_jax.errors import UserError

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (6, 5, 4, 1), np.uint8)
RGB = RANDOM.integers(0, 256, (6, 5, 4, 3), np.uint8)
LABELS = np.array([0, 2, 1, 0, 2, 1])


def message(*arguments, **options):
    with pytest.raises(UserError) as caught:
        load(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def save_npz(path, names=("train_images", "train_labels", "test_images", "test_labels"), **changes):
    values: dict[str, Any] = dict(zip(names, (GREY, LABELS, GREY[:2], LABELS[:2]), strict=True))
    np.savez(path, **(values | changes))
    return str(path)


@pytest.mark.parametrize("has_names", [False, True])
def test_npz(tmp_path, has_names):
    names = {"class_names": np.array(["cat", "dog", "owl"])} if has_names else {}
    dataset = load(save_npz(tmp_path / "arrays.npz", **names))
    np.testing.assert_array_equal(dataset.train_images, GREY)
    np.testing.assert_array_equal(dataset.test_labels, LABELS[:2])
    assert dataset.class_names == (("cat", "dog", "owl") if has_names else ("0", "1", "2"))
    assert dataset.image_size == (5, 4) and dataset.channels == 1


def test_npz_of_keras_without_an_axis_of_channels(tmp_path):
    path = save_npz(tmp_path / "mnist.npz", ("x_train", "y_train", "x_test", "y_test"), x_train=GREY[..., 0])
    np.testing.assert_array_equal(load(path).train_images, GREY)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"train_images": GREY / 255}, ["train_images is float64", "uint8"]),
        ({"train_labels": LABELS / 2}, ["train_labels is float64 [6]", "integers"]),
        ({"test_labels": LABELS[:2] + 2**40}, ["test_labels runs to", "from 0"]),
        ({"test_labels": LABELS[:2] - 1}, ["test_labels runs from -1 to 1", "subtract the smallest label"]),
        ({"train_labels": LABELS + 1}, ["class 0 has no training images", "start at 1? subtract the smallest label"]),
        ({"train_labels": LABELS * 10}, ["labels run to 20, but 18 of the classes 0 to 20", "the first is 1;"]),
        ({"test_labels": LABELS[:2] + 1}, ["labels run to 3, but 1 of the classes 0 to 3", "the first is 3;"]),
        ({"test_labels": LABELS[:2] + 2**30}, ["labels run to 1073741826, but 1073741824 of the classes"]),
        ({"test_images": RGB[:2]}, ["an image of test_images is [5, 4, 3]", "[5, 4, 1]"]),
        ({"train_labels": np.array([object()] * 6)}, ["cannot be read as .npz"]),
    ],
)
def test_npz_that_does_not_fit(tmp_path, changes, parts):
    text = message(save_npz(tmp_path / "arrays.npz", **changes))
    for part in parts:
        assert part in text


def test_npz_that_is_missing_or_of_something_else(tmp_path):
    assert "none.npz does not exist" in message(str(tmp_path / "none.npz"))
    np.savez(tmp_path / "other.npz", weights=GREY)
    assert "holds weights; it should hold the arrays train_images" in message(str(tmp_path / "other.npz"))


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path, images: Any = RGB, labels=LABELS, column="label", names=("cat", "dog", "owl")):
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    files = [{"bytes": png(image), "path": f"{number}.png"} for number, image in enumerate(images)]
    table = pyarrow.table({"image": files, column: pyarrow.array(labels, pyarrow.int64())})
    if names:
        features = {"image": {"_type": "Image"}, column: {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(table, path)


@pytest.mark.parametrize(
    "files",
    [
        {
            "data/train-00000-of-00002.parquet": 3,
            "data/train-00001-of-00002.parquet": 6,
            "data/test-00000-of-00001.parquet": 2,
        },
        {"default/train/0000.parquet": 6, "default/validation/0000.parquet": 2},
        {"train.parquet": 6, "valid.parquet": 2, "train_extra_dir/other.parquet": 0},
    ],
)
def test_parquet_files_as_on_the_hub(tmp_path, files):
    pytest.importorskip("pyarrow")
    for name, last in files.items():
        first = 3 if "00001-of" in name else 0
        write_parquet(tmp_path / name, RGB[first:last], LABELS[first:last])
    for _ in range(2):  # decoded, then from the cache
        dataset = load("parquet_folder", dir=str(tmp_path))
        np.testing.assert_array_equal(dataset.train_images, RGB)
        np.testing.assert_array_equal(dataset.train_labels, LABELS)
        np.testing.assert_array_equal(dataset.test_images, RGB[:2])
        assert dataset.class_names == ("cat", "dog", "owl")
    grey = load("parquet_folder", dir=str(tmp_path), channels=1)
    luma = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in RGB])
    np.testing.assert_array_equal(grey.train_images[..., 0], luma)
    assert load("parquet_folder", dir=str(tmp_path), image_size=7).train_images.shape == (6, 7, 7, 3)


def test_parquet_of_other_columns_and_values(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    assert "no file train*.parquet and no parquet file at all" in message("parquet_folder", dir=str(tmp_path))
    write_parquet(tmp_path / "test.parquet")
    write_parquet(tmp_path / "train.parquet", column="fine_label", names=())
    dataset = load("parquet_folder", dir=str(tmp_path))
    assert dataset.num_classes == 3
    write_parquet(tmp_path / "train.parquet", labels=LABELS + 1, names=())
    write_parquet(tmp_path / "test.parquet", labels=LABELS + 1, names=())
    assert "class 0 has no training images" in message("parquet_folder", dir=str(tmp_path))
    write_parquet(tmp_path / "test.parquet")
    write_parquet(tmp_path / "train.parquet", column="kind")
    text = message("parquet_folder", dir=str(tmp_path))
    assert "has the columns image (struct" in text and "kind (int64)" in text
    write_parquet(tmp_path / "train.parquet", labels=LABELS - 1)
    assert "has labels from -1 to 2" in message("parquet_folder", dir=str(tmp_path))
    write_parquet(tmp_path / "train.parquet", labels=LABELS + 2**32, names=())
    write_parquet(tmp_path / "test.parquet", names=())
    assert "has the label 4294967298" in message("parquet_folder", dir=str(tmp_path))
    write_parquet(tmp_path / "train.parquet", names=("dog", "cat", "owl"))
    write_parquet(tmp_path / "test.parquet")
    assert "have other names of the classes, or in another order" in message("parquet_folder", dir=str(tmp_path))
    none = pyarrow.parquet.read_table(tmp_path / "test.parquet").slice(0, 0)
    pyarrow.parquet.write_table(none, tmp_path / "train.parquet")
    assert "has no image in its train files" in message("parquet_folder", dir=str(tmp_path))
    write_parquet(tmp_path / "train.parquet", images=[*RGB[:5], RGB[5, :3]])
    text = message("parquet_folder", dir=str(tmp_path))
    assert "image 5 in" in text and "4 x 3 and 4 x 5 pixels" in text and "data.image_size" in text
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and nothing else")
    assert "train.parquet is cut short or damaged" in message("parquet_folder", dir=str(tmp_path))
    assert "data.dir is empty" in message("parquet_folder")


@pytest.mark.parametrize("file_format", ["array_record", "parquet"])
def test_a_directory_of_tfds(tmp_path, file_format):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("pyarrow")

    class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # pyright: ignore
        __module__ = "no_package"  # from a package, TFDS would want importlib_resources
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(5, 4, 3)),
                "label": tfds.features.ClassLabel(names=["cat", "dog", "owl"]),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(RGB), "validation": self._generate_examples(RGB[:2])}

        def _generate_examples(self, images):
            for index, image in enumerate(images):
                yield index, {"image": Image.fromarray(image), "label": LABELS[index]}

    Pictures(data_dir=str(tmp_path), file_format=file_format).download_and_prepare()
    for folder in (tmp_path, tmp_path / "pictures/1.0.0"):
        dataset = load("tfds_folder", dir=str(folder))
        found = {
            image.tobytes(): label for image, label in zip(dataset.train_images, dataset.train_labels, strict=True)
        }
        assert found == {image.tobytes(): label for image, label in zip(RGB, LABELS, strict=True)}
        assert len(dataset.test_labels) == 2 and dataset.class_names == ("cat", "dog", "owl")
    assert "no dataset_info.json in array_record or parquet format" in message(
        "tfds_folder", dir=str(tmp_path.parent / "no")
    )
