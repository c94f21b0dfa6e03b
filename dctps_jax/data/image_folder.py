"""Any images sorted into folders by class: `<data.dir>/train/<class>/*` and `<data.dir>/test/<class>/*`."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dctps_jax.data.cache import cached
from dctps_jax.data.dataset import Dataset, Decoded, DecodedPart, Options, Size
from dctps_jax.data.images import DECODER, SUFFIXES, decode_image, image_blocks, max_file_bytes
from dctps_jax.data.reading import read_file, stamp_of, unreadable
from dctps_jax.errors import UserError
from dctps_jax.files import printable


def load_image_folder(options: Options) -> Dataset:
    """Reads the images below `options.dir` (.png, .jpg, .jpeg, .bmp, .webp, .gif, .tif, .tiff in any case).

    There is one folder for each class. Label k is the k-th class in the alphabetical order of the folder names in
    train. Other files, hidden ones, and those in folders inside a class are passed over; how many, is printed. All
    images become RGB, or grey with `options.channels` 1; of several frames the first is taken. With
    `options.image_size` 0 they all have to be of one size, which need not be square; otherwise they are resized to it
    in the way of `options.fit`. `mean` and `std` are None.

    Raises UserError for a missing or empty folder, a class that only test has or whose name is not UTF-8, and an image
    that is unreadable, of another size, or of more than `options.max_pixels`.
    """
    passed_over: dict[str, list[str]] = {}
    train = _list_classes(options.dir / "train", passed_over)
    test = _list_classes(options.dir / "test", passed_over)
    for class_name in test:
        if class_name not in train:
            raise UserError(
                f"{options.dir / 'test' / class_name} is a class that train lacks; the classes of train are "
                f"{_shorten(list(train))}; remove the folder, or add its training images."
            )
    files = [file for classes in (train, test) for listed in classes.values() for file in listed]
    for reason, names in passed_over.items():
        print(f"{options.dir}: passed over, {reason}: {len(names)} ({_shorten(names, 3)})")
    grey = "" if options.channels == 3 else ",channels=1"
    extra = f"image_size={options.image_size},fit={options.fit},{DECODER}{grey}"
    stamp = stamp_of(options.dir, files, extra=extra)
    arrays = cached("image_folder", options.dir, stamp, options, lambda: _decode(train, test, options))
    return Dataset("image_folder", *arrays)


def _list_classes(part: Path, passed_over: dict[str, list[str]]) -> dict[str, list[Path]]:
    """The image files of every class folder in `part`, in alphabetical order; `passed_over` takes others by reason."""

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
            raise UserError(f"{folder} is a class folder whose name is not UTF-8; rename it.") from error
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
                f"{folder} holds no image; put at least one file of {', '.join(SUFFIXES)} there, or remove the folder."
            )
        classes[folder.name] = files
    if not classes:
        raise UserError(f"{part} holds no class folder; sort its images into one folder for each class.")
    return classes


def _list(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in sorted(os.listdir(folder))]
    except OSError as error:
        advice = "data.dir has to hold train/<class>/ and test/<class>/: set it to a folder that does"
        raise unreadable(folder, error, advice) from error


def _files_below(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        yield from (Path(place) / name for name in sorted(names))


def _decode(train: dict[str, list[Path]], test: dict[str, list[Path]], options: Options) -> Decoded:
    class_names = tuple(train)
    max_pixels, max_bytes = options.max_pixels, max_file_bytes(options.max_pixels)

    def read(file: str) -> bytes:
        return read_file(Path(file), max_bytes)

    size: Size = options.image_size
    if not size:
        first = str(next(iter(train.values()))[0])
        height, width = decode_image(read(first), first, max_pixels=max_pixels).shape[:2]
        size = height if height == width else (height, width)

    def split(classes: dict[str, list[Path]]) -> DecodedPart:
        files = [str(path) for paths in classes.values() for path in paths]
        labels = [class_names.index(class_name) for class_name, paths in classes.items() for _ in paths]
        advice = "set data.image_size to resize all images to one size."
        resize = bool(options.image_size)
        blocks = image_blocks(
            files,
            read,
            size,
            resize=resize,
            size_advice=advice,
            max_pixels=max_pixels,
            fit=options.fit,
            channels=options.channels,
        )
        return DecodedPart(np.array(labels, np.int32), size, blocks, options.channels)

    return Decoded(split(train), split(test), class_names)


def _shorten(names: list[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
