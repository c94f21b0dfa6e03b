"""Tiny ImageNet from its official zip archive or the folder extracted from it."""

import contextlib
import io
import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dctps_jax.data.cache import cached, cached_without_source
from dctps_jax.data.dataset import Arrays, Dataset, Decoded, DecodedPart, Options
from dctps_jax.data.download import ARCHIVES, obtain
from dctps_jax.data.images import image_blocks
from dctps_jax.data.reading import open_regular, parsing, read_file, stamp_of
from dctps_jax.errors import UserError

_SIZE = 64
_MEAN = (0.4802, 0.4481, 0.3975)
_STD = (0.2770, 0.2691, 0.2821)
_CLASSES = "wnids.txt"
_ANNOTATIONS = "val/val_annotations.txt"
_MAX_MEMBER_BYTES = 2**22  # about ten times the longest official member, val_annotations.txt
_MAX_CONTENTS_BYTES = 2**26  # of a zip's list of contents, about five times the official list
_DOWNLOAD_AGAIN = "remove it and download it again"


@dataclass(frozen=True)
class _Tree:
    """The files below tiny-imagenet-200, in an archive or a folder: names with "/", and a function to read one."""

    where: Path
    names: list[str]
    read: Callable[[str], bytes]


def load_tiny_imagenet(options: Options) -> Dataset:
    """Read Tiny ImageNet: 64 × 64 RGB images, the official training images and, as test part, the validation images.

    Label k is the k-th WordNet id of wnids.txt in sorted order. The class names are these ids. The function reads the
    first of these that ``options.dir`` holds: tiny-imagenet-200.zip, the only other tiny-imagenet-200*.zip, the
    extracted folder tiny-imagenet-200, a decoded copy of an earlier run. If there is none, it downloads the archive. An
    archive may hold fewer classes and images than the official one.

    Raises UserError if nothing is found and nothing can be downloaded, and for a damaged or missing file.
    """
    return Dataset("tiny_imagenet", *_load_arrays(options), mean=_MEAN, std=_STD)


def _load_arrays(options: Options) -> Arrays:
    name, archive = "tiny_imagenet", ARCHIVES["tiny_imagenet"]
    path = _find_zip(options.dir, archive.file)
    if path is None:
        folder = next(
            (path for path in (options.dir / archive.folder, options.dir) if (path / _CLASSES).is_file()), None
        )
        if folder is not None:
            tree = _open_folder(folder)
            stamp = stamp_of(folder, [folder / file for file in tree.names])
            return cached(name, folder, stamp, options, lambda: _decode(tree, options.max_pixels))
        if arrays := cached_without_source(name, options):
            return arrays
        path = obtain(archive, options)
    stamp = stamp_of(path.parent, [path])
    with contextlib.ExitStack() as opened:
        return cached(
            name, path, stamp, options, lambda: _decode(_open_zip(path, archive.folder, opened), options.max_pixels)
        )


def _find_zip(folder: Path, official: str) -> Path | None:
    if (folder / official).is_file():
        return folder / official
    others = sorted(path for path in folder.glob("tiny-imagenet-200*.zip") if path.is_file())
    if len(others) > 1:
        raise UserError(
            f"{folder} (config.data.dir) holds several archives ({', '.join(path.name for path in others)}), but no "
            f"{official}; leave one of them there"
        )
    return others[0] if others else None


def _open_zip(path: Path, root: str, opened: contextlib.ExitStack) -> _Tree:
    """Return the tree in an archive, which ``opened`` closes."""
    with parsing(path, _DOWNLOAD_AGAIN):
        file = opened.enter_context(_ZipBytes(open_regular(path).detach()))
        archive = zipfile.ZipFile(file)
        # The list of contents has no checksum, and an image with a damaged name there would be missed silently. Opening
        # an entry compares its name with the name in front of its data.
        for entry in archive.infolist():
            # zipfile unpacks other methods without a limit.
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{entry.filename} is compressed by method {entry.compress_type}, not by deflate")
            archive.open(entry).close()

    def read(name: str) -> bytes:
        with parsing(path, _DOWNLOAD_AGAIN), archive.open(f"{root}/{name}") as member:
            content = member.read(_MAX_MEMBER_BYTES + 1)
        if len(content) > _MAX_MEMBER_BYTES:
            raise UserError(
                f"{name} in {path} has more than the {_MAX_MEMBER_BYTES:,} bytes that are allowed; {_DOWNLOAD_AGAIN}"
            )
        return content

    return _Tree(
        path, [name.removeprefix(f"{root}/") for name in archive.namelist() if name.startswith(f"{root}/")], read
    )


class _ZipBytes(io.BufferedReader):
    """An archive whose list of contents, which zipfile reads at once, is not longer than a real one."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > _MAX_CONTENTS_BYTES:
            raise zipfile.BadZipFile(f"its list of contents has {size:,} bytes, more than {_MAX_CONTENTS_BYTES:,}")
        return super().read(size)


def _open_folder(folder: Path) -> _Tree:
    def read(name: str) -> bytes:
        return read_file(folder / name, _MAX_MEMBER_BYTES, "extract the archive again")

    def stop(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    names = []
    for part in ("train", "val"):
        for parent, _, files in os.walk(folder / part, onerror=stop):
            names += [(Path(parent) / file).relative_to(folder).as_posix() for file in files]
    return _Tree(folder, [_CLASSES, *names], read)


def _decode(tree: _Tree, max_pixels: int) -> Decoded:
    class_names = tuple(sorted(_read_text(tree, _CLASSES).split()))
    if not class_names or len(set(class_names)) != len(class_names):
        raise UserError(f"{_CLASSES} in {tree.where} is empty or lists a class twice; get {tree.where.name} again")
    labels = {class_name: label for label, class_name in enumerate(class_names)}
    advice = "it is not the official Tiny ImageNet: get that"

    def split(images: dict[str, str]) -> DecodedPart:
        blocks = image_blocks(
            list(images),
            tree.read,
            _SIZE,
            resize=False,
            size_advice=advice,
            max_pixels=max_pixels,
            inside=f" in {tree.where}",
        )
        return DecodedPart(np.array([labels[class_name] for class_name in images.values()], np.int32), _SIZE, blocks)

    return Decoded(split(_list_train(tree, labels)), split(_list_val(tree, labels)), class_names)


def _list_train(tree: _Tree, labels: dict[str, int]) -> dict[str, str]:
    """Return the class of every training image, in the order of labels and, within a class, of the numbers in names."""
    numbered = []
    for name in tree.names:
        if match := re.fullmatch(r"train/([^/]+)/images/[^/.]*?(\d{1,18})\.JPEG", name):
            if match[1] not in labels:
                raise UserError(f"{name} in {tree.where} is of a class that {_CLASSES} does not list; get it again")
            numbered.append((labels[match[1]], int(match[2]), name, match[1]))
    images = {name: class_name for _, _, name, class_name in sorted(numbered)}
    if missing := labels.keys() - set(images.values()):
        raise UserError(f"{tree.where} has no image in train/{min(missing)}/images; get {tree.where.name} again")
    return images


def _list_val(tree: _Tree, labels: dict[str, int]) -> dict[str, str]:
    """Return the class of every validation image, in the order of val_annotations.txt or of the folders of classes.

    Scripts that sort the images for PyTorch move them to val/CLASS or val/CLASS/images.
    """
    in_folders = []
    for name in tree.names:
        match = re.fullmatch(r"val/([^/]+)/(?:images/)?[^/.]*?(\d{1,18})\.JPEG", name)
        if match and match[1] in labels:
            in_folders.append((labels[match[1]], int(match[2]), name, match[1]))
    if in_folders:
        if missing := labels.keys() - {class_name for *_, class_name in in_folders}:
            raise UserError(f"{tree.where} has no image in val/{min(missing)}; get {tree.where.name} again")
        return {name: class_name for _, _, name, class_name in sorted(in_folders)}
    present = {name for name in tree.names if re.fullmatch(r"val/images/[^/.]+\.JPEG", name)}
    images = {}
    for number, line in enumerate(_read_text(tree, _ANNOTATIONS).splitlines(), 1):
        fields = line.split("\t")
        name = f"val/images/{fields[0]}"
        if len(fields) < 2 or name in images or name not in present or fields[1] not in labels:
            raise UserError(
                f"line {number} of {_ANNOTATIONS} in {tree.where} is {line[:60]!r}, but must name an image in "
                f"val/images that no other line names, and its class; get {tree.where.name} again"
            )
        images[name] = fields[1]
    if rest := present - images.keys():
        raise UserError(f"{min(rest)} in {tree.where} has no line in {_ANNOTATIONS}; get {tree.where.name} again")
    if not images:
        raise UserError(f"{_ANNOTATIONS} in {tree.where} is empty; get {tree.where.name} again")
    return images


def _read_text(tree: _Tree, name: str) -> str:
    if name not in tree.names:
        raise UserError(f"{tree.where} holds no tiny-imagenet-200/{name}; get {tree.where.name} again")
    try:
        return tree.read(name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} in {tree.where} is not text ({error}); get {tree.where.name} again") from error
