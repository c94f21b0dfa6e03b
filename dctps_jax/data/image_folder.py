"""Any images sorted into folders by class: ``<data.dir>/train/<class>/*`` and ``<data.dir>/test/<class>/*``.

Without ``test``, ``val`` is the test part: the layout of ImageNet.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dctps_jax.data.dataset import Decoded, DecodedPart, Options, Size
from dctps_jax.data.encoded import ADVICE, Encoded
from dctps_jax.data.images import DECODER, SUFFIXES, decode_image, image_blocks, max_file_bytes
from dctps_jax.data.reading import read_file, stamp_of, unreadable
from dctps_jax.data.shards import digest_of_files
from dctps_jax.errors import UserError, some_of
from dctps_jax.files import printable


def find_image_folder(options: Options) -> Encoded:
    """Find the images below ``options.dir`` (.png, .jpg, .jpeg, .bmp, .webp, .gif, .tif, .tiff in any case).

    There is one folder for each class. Label k is the k-th class in the alphabetical order of the folder names in
    train. Other files, hidden files, and files in folders inside a class are passed over, and their number is printed.
    All images become RGB, or grey with ``options.channels`` 1. Of several frames the first is taken. With
    ``options.image_size`` 0 all images must have one size, which need not be square. Otherwise they are resized to that
    size in the way of ``options.fit``.

    Raises UserError for a missing or empty folder, and for a class that only test has or whose name is not UTF-8.
    Decoding raises it for an image that is unreadable, of another size, or of more than ``options.max_pixels``.
    """
    passed_over: dict[str, list[str]] = {}
    train = _list_classes(options.dir / "train", passed_over)
    test_folder = options.dir / ("test" if (options.dir / "test").exists() else "val")
    test = _list_classes(test_folder if test_folder.exists() else options.dir / "test", passed_over)
    for class_name in test:
        if class_name not in train:
            raise UserError(
                f"{test_folder / class_name} is a class that train lacks; the classes of train are "
                f"{some_of(list(train), 10)}; remove the folder, or add its training images"
            )
    files = [file for classes in (train, test) for listed in classes.values() for file in listed]
    for reason, names in passed_over.items():
        print(f"{options.dir}: passed over, {reason}: {len(names)} ({some_of(names, 3)})")
    grey = "" if options.channels == 3 else ",channels=1"
    extra = f"image_size={options.image_size},fit={options.fit},{DECODER}{grey}"
    stamp = stamp_of(options.dir, files, extra=extra)
    class_names = tuple(train)
    train_files, test_files = (FilesInFolders(classes, class_names, options.max_pixels) for classes in (train, test))
    digest = digest_of_files(options.dir, files)

    def decode() -> Decoded:
        return _decode(train_files, test_files, class_names, options)

    return Encoded("image_folder", options.dir, train_files, test_files, class_names, digest, stamp, decode)


class FilesInFolders:
    """The image files of one part, one class after another."""

    def __init__(self, classes: dict[str, list[Path]], class_names: tuple[str, ...], max_pixels: int):
        self.paths = [str(path) for paths in classes.values() for path in paths]
        numbers = {name: number for number, name in enumerate(class_names)}
        self.labels = np.repeat([numbers[name] for name in classes], [*map(len, classes.values())]).astype(np.int32)
        self._max_bytes = max_file_bytes(max_pixels)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[str, bytes]:
        return self.paths[row], self.read(self.paths[row])

    def read(self, path: str) -> bytes:
        return read_file(Path(path), self._max_bytes)


def _list_classes(part: Path, passed_over: dict[str, list[str]]) -> dict[str, list[Path]]:
    """Return the image files of each class folder in ``part``, in alphabetical order; add others to ``passed_over``."""

    def skip(path: Path, reason: str) -> None:
        passed_over.setdefault(reason, []).append(printable(str(path.relative_to(part.parent))))

    classes = {}
    for folder in _list(part):
        if folder.name.startswith("."):
            skip(folder, "hidden")
            continue
        if not folder.is_dir():
            skip(folder, "in no folder of a class")
            continue
        try:
            folder.name.encode()
        except UnicodeEncodeError as error:  # neither a terminal nor a results file can show it
            raise UserError(f"{folder} is a class folder whose name is not UTF-8; rename it") from error
        files = []
        for path in _list(folder):
            if path.name.startswith("."):
                skip(path, "hidden")
            elif path.is_dir():
                for file in _files_below(path):
                    skip(file, "in a folder inside a class")
            elif path.suffix.lower() in SUFFIXES:
                files.append(path)
            else:
                skip(path, "not named as an image")
        if not files:
            raise UserError(
                f"{folder} holds no image; put at least one file of {', '.join(SUFFIXES)} there, or remove the folder"
            )
        classes[folder.name] = files
    if not classes:
        raise UserError(f"{part} holds no class folder; sort its images into one folder for each class")
    return classes


def _list(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in sorted(os.listdir(folder))]
    except OSError as error:
        advice = (
            "config.data.dir must hold train/<class>/ and test/<class>/ (or val/<class>/): set it to a folder that does"
        )
        raise unreadable(folder, error, advice) from error


def _files_below(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        yield from (Path(place) / name for name in sorted(names))


def _decode(train: FilesInFolders, test: FilesInFolders, class_names: tuple[str, ...], options: Options) -> Decoded:
    size: Size = options.image_size
    if not size:
        where, content = train[0]
        height, width = decode_image(content, where, max_pixels=options.max_pixels).shape[:2]
        size = height if height == width else (height, width)

    def part(files: FilesInFolders) -> DecodedPart:
        blocks = image_blocks(
            files.paths,
            files.read,
            size,
            resize=bool(options.image_size),
            size_advice=ADVICE,
            max_pixels=options.max_pixels,
            fit=options.fit,
            channels=options.channels,
        )
        return DecodedPart(files.labels, size, blocks, options.channels)

    return Decoded(part(train), part(test), class_names)
