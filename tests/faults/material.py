"""Sound files to damage: a run that was stopped, the same one finished, another run, an export, and small data sets.

Everything is made by the programs themselves. Each case works on copies below `sandbox/`, at the same paths as what was
made there, since a run over an image folder knows its images by their place.
"""

import io
import os
import random
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.faults.programs import program

CLASSES = ("cat", "dog", "owl")
# Python 3.11.4 and later know filters, and 3.12 warns where none is given.
SAFE: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
FORMATS = (".png", ".jpg", ".bmp", ".webp")
SETTINGS = {
    "num_epochs": 2, "batch_size": 8, "eval_batch_size": 16, "checkpoint_every_steps": 1, "data.name": "image_folder",
    "data.train_fraction": 0.75, "data.mean": (0.5, 0.5, 0.5), "data.std": (0.25, 0.25, 0.25), "tensorboard": False,
    "execution.keep_memory": False, "sparse_training.method": "rigl", "sparse_training.update_every": 1,
}  # fmt: skip


RUN_TREES = ("stopped", "finished", "cache", "runs", "export", "records")


class Material:
    """Sound trees below `folder/sound/NAME`, and those of another run, or other data, below `folder/foreign/NAME`.

    They are made when :meth:`provide` first asks for them; a folder that holds them already is used again.
    """

    def __init__(self, folder: Path):
        self.folder, self.sandbox = folder, folder / "sandbox"
        self.sound, self.foreign = folder / "sound", folder / "foreign"

    def provide(self, trees: Iterable[str]) -> None:
        """Make what is not there yet of the trees with these names."""
        self._once("data", self._make_data)
        if set(trees) & set(RUN_TREES):
            self._once("runs", self._make_runs)
        if "tfds" in trees:  # importing TFDS takes seconds
            self._once("tfds", lambda: [make_tfds(self.sound / "tfds", 1), make_tfds(self.foreign / "tfds", 2)])

    def _once(self, what: str, make: Callable[[], object]) -> None:
        done = self.folder / f"{what}_is_complete"
        if not done.exists():
            make()
            done.touch()

    def command(self, workdir: Path, seed: int = 0) -> list[object]:
        """The options of `train.py` for a run over the images in the sandbox."""
        settings = SETTINGS | {
            "data.dir": self.sandbox / "data",
            "data.cache_dir": self.sandbox / "cache",
            "seed": seed,
        }
        fields = [f"--config.{field}={value}" for field, value in settings.items()]
        config = Path(__file__).parents[2] / "configs/lenet_digits.py"
        return ["--config", config, *fields, "--workdir", workdir]

    def lay_out(self, parts: dict[str, str]) -> Path:
        """Fill an empty sandbox with copies of sound trees, by the name that each gets there."""
        shutil.rmtree(self.sandbox, ignore_errors=True)
        self.sandbox.mkdir(parents=True)
        for name, tree in parts.items():
            shutil.copytree(self.sound / tree, self.sandbox / name)
        return self.sandbox

    def _make_data(self) -> None:
        for kind, seed in (("sound", 1), ("foreign", 2)):
            folder = self.folder / kind
            make_images(folder / "images", seed)
            make_cifar_archive(folder / "cifar_archive/cifar-10-binary.tar.gz", seed)
            with tarfile.open(folder / "cifar_archive/cifar-10-binary.tar.gz") as archive:
                archive.extractall(folder / "cifar_folder", **SAFE)
            make_tiny_imagenet(folder / "tiny_archive/tiny-imagenet-200.zip", seed)
            with zipfile.ZipFile(folder / "tiny_archive/tiny-imagenet-200.zip") as archive:
                archive.extractall(folder / "tiny_folder")
        self._make_caches()

    def _make_runs(self) -> None:
        sandbox, workdir = self.lay_out({"data": "images"}), self.sandbox / "run"
        _done(program("train.py", *self.command(workdir, seed=1)))
        shutil.move(workdir, self.foreign / "finished")
        _done(program("train.py", *self.command(workdir), stop_at="epoch 1/2"), 143)
        shutil.copytree(workdir, self.sound / "stopped")
        _done(program("train.py", *self.command(workdir)))
        shutil.copytree(workdir, self.sound / "finished")
        shutil.copytree(sandbox / "cache", self.sound / "cache")
        shutil.copytree(self.sound / "finished", self.sound / "runs/first")
        shutil.copytree(self.foreign / "finished", self.sound / "runs/second")
        for kind in (self.sound, self.foreign):
            (kind / "export").mkdir()
            run, file = kind / "finished", kind / "export/model.safetensors"
            _done(program("dctps_jax.export", run, "--output", file))
            shutil.copy(self.sound / "images/test/cat/0.png", kind / "export/image.png")
        shutil.copytree(self.sound / "runs", sandbox / "runs")
        _done(program("dctps_jax.reports.report", sandbox / "runs"))
        (self.sound / "records").mkdir()
        shutil.copy(sandbox / "runs/runs.jsonl", self.sound / "records")

    def _make_caches(self) -> None:
        """Decoded copies beside their sources, and without them."""
        from dctps_jax import data

        for kind in (self.sound, self.foreign):
            for name, tree in (("image_folder", "images"), ("cifar10", "cifar_archive")):
                shutil.rmtree(self.sandbox, ignore_errors=True)
                shutil.copytree(kind / tree, self.sandbox / "data")
                data.load(
                    name,
                    dir=str(self.sandbox / "data"),
                    cache_dir=str(self.sandbox / "data/.dctps_cache"),
                    download=False,
                )
                shutil.copytree(self.sandbox / "data", kind / f"{tree}_decoded")
        shutil.copytree(self.sound / "cifar_archive_decoded", self.sound / "cifar_orphan")
        (self.sound / "cifar_orphan/cifar-10-binary.tar.gz").unlink()


def _done(ended, code: int = 0) -> None:
    assert ended.code == code, ended


def _picture(random: np.random.Generator, size: int = 32) -> Image.Image:
    return Image.fromarray(random.integers(0, 256, (size, size, 3), np.uint8))


def make_images(folder: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    for part, count in (("train", 8), ("test", 4)):
        for name in CLASSES:
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                file = folder / part / name / f"{number}{FORMATS[number % len(FORMATS)]}"
                options: dict[str, Any] = {"lossless": True} if file.suffix == ".webp" else {}
                _picture(random).save(file, **options)


def make_cifar_archive(file: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    names = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]
    content = {"batches.meta.txt": "".join(f"class{label}\n" for label in range(10)).encode()}
    for name in names:
        records = random.integers(0, 256, (4, 3073), np.uint8)
        records[:, 0] %= 10
        content[name] = records.tobytes()
    file.parent.mkdir(parents=True)
    with tarfile.open(file, "w:gz") as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def make_tiny_imagenet(file: Path, seed: int) -> None:
    random, content, lines = np.random.default_rng(seed), {"wnids.txt": b"n03\nn01\nn02\n"}, []

    def jpeg() -> bytes:
        buffer = io.BytesIO()
        _picture(random, 64).save(buffer, "JPEG")
        return buffer.getvalue()

    for place, name in enumerate(("n01", "n02", "n03")):
        for number in range(3):
            content[f"train/{name}/images/{name}_{number}.JPEG"] = jpeg()
        content[f"val/images/val_{place}.JPEG"] = jpeg()
        lines.append(f"val_{place}.JPEG\t{name}\t0\t0\t9\t9\n")
    content["val/val_annotations.txt"] = "".join(lines).encode()
    file.parent.mkdir(parents=True)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(f"tiny-imagenet-200/{name}", data)


def make_tfds(folder: Path, seed: int) -> None:
    import tensorflow_datasets as tfds

    random = np.random.default_rng(seed)
    images = {
        part: random.integers(0, 256, (count, 32, 32, 3), np.uint8) for part, count in (("train", 20), ("test", 7))
    }

    class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        __module__ = "no_package"  # from a package, TFDS would want importlib_resources
        VERSION = tfds.core.Version("3.0.2")

        def _info(self):
            features = {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(shape=(32, 32, 3)),
                "label": tfds.features.ClassLabel(names=[f"class{label}" for label in range(10)]),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {part: self._generate_examples(part) for part in images}

        def _generate_examples(self, part):
            for index, image in enumerate(images[part]):
                yield index, {"id": str(index), "image": Image.fromarray(image), "label": index % 10}

    Cifar10(data_dir=str(folder), file_format="array_record").download_and_prepare()


def counterpart(path: Path, sound: Path, foreign: Path, seed: str) -> Path | None:
    """The file in `foreign` at the place of `path` in `sound`. For random names and steps: one of the same kind."""
    here = foreign
    for name in path.relative_to(sound).parts:
        if not here.is_dir():
            return None
        if not (here / name).exists():
            alike = [entry.name for entry in here.iterdir() if _kind_of_name(entry.name) == _kind_of_name(name) != ""]
            if not alike:
                return None
            name = random.Random(seed).choice(sorted(alike))
        here = here / name
    return here if here.exists() and here.is_dir() == path.is_dir() else None


def _kind_of_name(name: str) -> str:
    if name.isdigit():
        return "step"
    stem, _, mark = name.rpartition("-")
    return f"{stem} hash" if len(mark) in (12, 32) and not set(mark) - set("0123456789abcdef") else ""


def label_of(path: Path, root: Path) -> str:
    """A path below `root`, the same each time that the material is made: random names by the order of their sizes."""
    parts, here = [], root
    for name in path.relative_to(root).parts:
        if _kind_of_name(name).endswith("hash"):
            alike = [entry for entry in here.iterdir() if _kind_of_name(entry.name).endswith("hash")]
            alike.sort(key=lambda entry: (entry.stat().st_size, entry.name))
            parts.append(f"<{alike.index(here / name)}>")
        else:
            parts.append(name)
        here = here / name
    return os.path.join(*parts) if parts else "."
