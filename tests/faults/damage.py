"""Ways to damage a file or a folder. Each is a function of a random generator: the same seed does the same damage."""

import gzip
import importlib
import io
import json
import os
import re
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np

TRIPWIRE = "tests.faults.tripwire"
ARCHIVES = (".zip", ".tar.gz")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tiff", ".JPEG")


class Pointless(Exception):
    """This damage does not apply to this file, or would change nothing."""


class Kind(NamedTuple):
    """One way of damage: `act(random, path, other)`, where `other` is the same file of another run, or a neighbour."""

    applies: Callable[[Path], bool]
    act: Callable[[Random, Path, Path | None], None]


# Bytes.


def flip(random: Random, path: Path, other: Path | None) -> None:
    data = bytearray(path.read_bytes())
    if not data:
        raise Pointless
    for _ in range(random.choice((1, 1, 1, 2, 8))):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(data)


def cut(random: Random, path: Path, other: Path | None) -> None:
    data = path.read_bytes()
    if len(data) < 2:
        raise Pointless
    path.write_bytes(data[: random.choice((random.randrange(1, len(data)), len(data) - 1))])


def empty(random: Random, path: Path, other: Path | None) -> None:
    if not path.stat().st_size:
        raise Pointless
    path.write_bytes(b"")


def grow(random: Random, path: Path, other: Path | None) -> None:
    path.write_bytes(path.read_bytes() + random.randbytes(random.randint(1, 300)))


def zero_block(random: Random, path: Path, other: Path | None) -> None:
    data = bytearray(path.read_bytes())
    start = random.randrange(max(1, len(data)))
    size = min(random.choice((16, 512, 4096)), len(data) - start)
    if not any(data[start : start + size]):
        raise Pointless
    data[start : start + size] = bytes(size)
    path.write_bytes(data)


def noise(random: Random, path: Path, other: Path | None) -> None:
    path.write_bytes(random.randbytes(random.randint(1, 2 * path.stat().st_size + 20)))


def swap(random: Random, path: Path, other: Path | None) -> None:
    """Another file of the same folder takes its place."""
    others = [file for file in sorted(path.parent.iterdir()) if file.is_file() and file != path]
    if not others:
        raise Pointless
    data = random.choice(others).read_bytes()
    if data == path.read_bytes():
        raise Pointless
    path.write_bytes(data)


def foreign(random: Random, path: Path, other: Path | None) -> None:
    """The same file, or folder, of another run takes its place."""
    if other is None:
        raise Pointless
    if path.is_dir():
        shutil.rmtree(path)
        shutil.copytree(other, path)
    elif other.read_bytes() == path.read_bytes():
        raise Pointless
    else:
        path.write_bytes(other.read_bytes())


def remove(random: Random, path: Path, other: Path | None) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def folder_instead(random: Random, path: Path, other: Path | None) -> None:
    path.unlink()
    path.mkdir()
    if random.random() < 0.5:
        (path / "a file").write_bytes(b"content")


def dangling_link(random: Random, path: Path, other: Path | None) -> None:
    remove(random, path, other)
    path.symlink_to(random.choice(("nowhere", path.name)))


def fifo(random: Random, path: Path, other: Path | None) -> None:
    path.unlink()
    os.mkfifo(path)


# Folders.


def file_instead(random: Random, path: Path, other: Path | None) -> None:
    shutil.rmtree(path)
    path.write_bytes(random.choice((b"", b"content\n")))


def emptied(random: Random, path: Path, other: Path | None) -> None:
    shutil.rmtree(path)
    path.mkdir()


def renamed_step(random: Random, path: Path, other: Path | None) -> None:
    """A checkpoint passes for one of another step."""
    path.rename(_free_step(random, path))


def copied_step(random: Random, path: Path, other: Path | None) -> None:
    shutil.copytree(path, _free_step(random, path))


def _free_step(random: Random, path: Path) -> Path:
    """A later step that has no checkpoint."""
    paths = [path.with_name(str(int(path.name) + more)) for more in (1, 2, 7, 1000)]
    return random.choice([path for path in paths if not path.exists()])


def other_step(random: Random, path: Path, other: Path | None) -> None:
    """The content of another checkpoint of the same run."""
    steps = [step for step in sorted(path.parent.iterdir()) if step.name.isdigit() and step != path]
    if not steps:
        raise Pointless
    shutil.rmtree(path)
    shutil.copytree(random.choice(steps), path)


def stray(random: Random, path: Path, other: Path | None) -> None:
    """Something that does not belong there lies in the folder."""
    name = random.choice(("notes.txt", "7", "007", "12.orbax-checkpoint-tmp", "x y", ".hidden", "-1", "3.5"))
    if (path / name).exists():
        raise Pointless
    if random.random() < 0.5:
        (path / name).mkdir()
    else:
        (path / name).write_bytes(b"content")


# Lines.


def _lines(path: Path) -> list[bytes]:
    lines = path.read_bytes().splitlines(keepends=True)
    if not lines:
        raise Pointless
    return lines


def double_line(random: Random, path: Path, other: Path | None) -> None:
    lines = _lines(path)
    number = random.randrange(len(lines))
    path.write_bytes(b"".join([*lines[: number + 1], *lines[number:]]))


def lose_line(random: Random, path: Path, other: Path | None) -> None:
    lines = _lines(path)
    del lines[random.randrange(len(lines))]
    path.write_bytes(b"".join(lines))


def swap_lines(random: Random, path: Path, other: Path | None) -> None:
    lines = _lines(path)
    if len(set(lines)) < 2:
        raise Pointless
    first = random.randrange(len(lines) - 1)
    if lines[first] == lines[first + 1]:
        raise Pointless
    lines[first], lines[first + 1] = lines[first + 1], lines[first]
    path.write_bytes(b"".join(lines))


def join_lines(random: Random, path: Path, other: Path | None) -> None:
    lines = _lines(path)
    if len(lines) < 2:
        raise Pointless
    number = random.randrange(len(lines) - 1)
    lines[number] = lines[number].rstrip(b"\n")
    path.write_bytes(b"".join(lines))


def blank_line(random: Random, path: Path, other: Path | None) -> None:
    lines = _lines(path)
    lines.insert(random.randrange(len(lines) + 1), b"\n")
    path.write_bytes(b"".join(lines))


# Text.


def not_utf8(random: Random, path: Path, other: Path | None) -> None:
    data = path.read_bytes()
    where = random.randrange(len(data) + 1)
    path.write_bytes(data[:where] + random.choice((b"\xff", b"\xc3", b"\xed\xa0\x80")) + data[where:])


def utf16(random: Random, path: Path, other: Path | None) -> None:
    path.write_bytes(path.read_text().encode(random.choice(("utf-16", "utf-8-sig"))))


# JSON: a document, a line of many, or the header of a safetensors file.

ODD_VALUES = (
    "text", "", 3, -1, 0, 1.5, True, False, None, [], {}, [[1]], [1, "2"], {"a": {"b": 1}}, 10**400, 1e308,
    float("nan"), float("inf"), "\ud800", "a\nb", "../../x", "x" * 5000,
)  # fmt: skip


def _edit_text(random: Random, path: Path, edit: Callable[[str], str]) -> None:
    """Change one JSON document of a file."""
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        (size,) = struct.unpack("<Q", data[:8])
        header = edit(data[8 : 8 + size].decode()).encode(errors="surrogatepass")
        changed = struct.pack("<Q", len(header)) + header + data[8 + size :]
    elif path.suffix == ".jsonl":
        lines = _lines(path)
        number = random.randrange(len(lines))
        lines[number] = edit(lines[number].decode().rstrip("\n")).encode(errors="surrogatepass") + b"\n"
        changed = b"".join(lines)
    else:
        changed = edit(data.decode()).encode(errors="surrogatepass")
    if changed == data:
        raise Pointless
    path.write_bytes(changed)


def _edit_value(random: Random, path: Path, edit: Callable[[Any], Any]) -> None:
    _edit_text(random, path, lambda text: json.dumps(_closed(edit(_opened(json.loads(text))))))


class _Nested(dict):
    """JSON within a string of JSON, as in the header of a safetensors file, opened to be changed."""


def _opened(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _opened(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_opened(member) for member in value]
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return _Nested(text=_opened(json.loads(value)))
        except ValueError:
            return value
    return value


def _closed(value: Any) -> Any:
    if isinstance(value, _Nested):
        return json.dumps(_closed(value["text"]))
    if isinstance(value, dict):
        return {key: _closed(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_closed(member) for member in value]
    return value


def _places(value: Any, wanted: Callable[[Any], bool] = lambda member: True) -> list[tuple[Any, Any]]:
    """Every (container, key) below a value whose member is wanted."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for key, member in entries:
        if not isinstance(value, _Nested) and wanted(member):
            found.append((value, key))
        found += _places(member, wanted)
    return found


def _pick(random: Random, places: list[Any]) -> Any:
    if not places:
        raise Pointless
    return random.choice(places)


def _dict_places(value: Any) -> list[tuple[Any, Any]]:
    return [place for place in _places(value) if isinstance(place[0], dict)]


def rename_key(random: Random, path: Path, other: Path | None) -> None:
    def edit(value: Any) -> Any:
        container, key = _pick(random, _dict_places(value))
        renamed = {(f"{old}x" if old == key else old): member for old, member in container.items()}
        container.clear()
        container.update(renamed)
        return value

    _edit_value(random, path, edit)


def lose_key(random: Random, path: Path, other: Path | None) -> None:
    def edit(value: Any) -> Any:
        container, key = _pick(random, _places(value))
        del container[key]
        return value

    _edit_value(random, path, edit)


def other_type(random: Random, path: Path, other: Path | None) -> None:
    def edit(value: Any) -> Any:
        container, key = _pick(random, _places(value))
        container[key] = random.choice(ODD_VALUES)
        return value

    _edit_value(random, path, edit)


def other_digit(random: Random, path: Path, other: Path | None) -> None:
    """One digit of one number, or of a text such as a digest, is another one."""

    def edit(value: Any) -> Any:
        def has_digits(member: Any) -> bool:
            return (
                not isinstance(member, bool | None)
                and isinstance(member, int | float | str)
                and any(character.isdigit() for character in str(member))
            )

        container, key = _pick(random, _places(value, has_digits))
        text = json.dumps(container[key])
        where = random.choice([place for place, character in enumerate(text) if character.isdigit()])
        digit = random.choice([digit for digit in "123456789" if digit != text[where]])
        container[key] = json.loads(text[:where] + digit + text[where + 1 :])
        return value

    _edit_value(random, path, edit)


def foreign_module(random: Random, path: Path, other: Path | None) -> None:
    """The name of a module or class is that of one which must not be imported."""

    def edit(value: Any) -> Any:
        def is_name(member: Any) -> bool:
            return isinstance(member, str) and bool(re.fullmatch(r"[a-z_]+(\.\w+)+", member))

        container, key = _pick(random, _places(value, is_name))
        container[key] = f"{TRIPWIRE}.Trip"
        return value

    _edit_value(random, path, edit)


def other_document(random: Random, path: Path, other: Path | None) -> None:
    documents = (
        "[]",
        "{}",
        "3",
        "null",
        '"text"',
        "NaN",
        "",
        "[" * 100_000,
        '{"a":' * 100_000,
        "{} {}",
        "[{}]",
        "True",
    )
    _edit_text(random, path, lambda text: random.choice(documents))


def key_twice(random: Random, path: Path, other: Path | None) -> None:
    def edit(text: str) -> str:
        value = json.loads(text)
        if not isinstance(value, dict) or not value:
            raise Pointless
        again = json.dumps({random.choice(list(value)): random.choice(ODD_VALUES)})
        return text.rstrip()[:-1] + ", " + again[1:]

    _edit_text(random, path, edit)


# Arrays.


class _Trip:
    def __reduce__(self):
        return importlib.import_module, (TRIPWIRE,)


def odd_array(random: Random, path: Path, other: Path | None) -> None:
    """A sound .npz file with one array that is not the one it was."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive}
    if not arrays:
        raise Pointless
    name = random.choice(sorted(arrays))
    array = arrays[name]
    changed = array.copy()
    place = random.randrange(max(1, array.size))
    if array.size:
        changed.flat[place] = ~array.flat[place] if array.dtype == bool else array.flat[place] + 1
    objects = np.empty(1, object)
    objects[0] = _Trip()
    arrays[name] = random.choice(
        (
            changed, array.astype(np.uint8), array.astype("U5"), array[..., :-1], array[None], array.T, objects,
            array[()] * 0, np.array(1.5),
        )
    )  # fmt: skip
    np.savez(path.with_suffix(".npz"), **arrays)  # pyright: ignore[reportArgumentType]


def odd_npy(random: Random, path: Path, other: Path | None) -> None:
    array = np.load(path)
    objects = np.empty(1, object)
    objects[0] = _Trip()
    np.save(
        path, random.choice((array[1:], array.astype(np.float32), array[::-1], array + 1, objects)), allow_pickle=True
    )


def huge_npy(random: Random, path: Path, other: Path | None) -> None:
    """A header that speaks of far more than there is."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 32, 32, 3)}
    )
    path.write_bytes(buffer.getvalue() + path.read_bytes()[128:])


# Archives.

# A name that is no UTF-8. zipfile does not write such names: it gets one of the same length, which the bytes replace.
NO_UTF8 = os.fsdecode(b"no \xff\xff text")
PLACEHOLDER = "no \xe9 text"


def _edit_members(random: Random, path: Path, edit: Callable[[list[tuple[str, bytes]]], None]) -> None:
    """Change the members of a sound .zip, .npz or .tar.gz file."""
    if path.name.endswith(".tar.gz"):
        with tarfile.open(path) as tar:
            members = [(member.name, tar.extractfile(member).read()) for member in tar if member.isfile()]  # pyright: ignore
        edit(members)
        with tarfile.open(path, "w:gz") as tar:
            for name, content in members:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return
    with zipfile.ZipFile(path) as archive:
        members = [(entry.filename, archive.read(entry)) for entry in archive.infolist() if not entry.is_dir()]
    edit(members)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name.replace(NO_UTF8, PLACEHOLDER)), content, zipfile.ZIP_DEFLATED)
    path.write_bytes(path.read_bytes().replace(PLACEHOLDER.encode(), os.fsencode(NO_UTF8)))


def rename_member(random: Random, path: Path, other: Path | None) -> None:
    def edit(members: list[tuple[str, bytes]]) -> None:
        number = random.randrange(len(members))
        name, content = members[number]
        members[number] = (random.choice((f"{name}x", f"x{name}", "", "/etc/x", f"../../{name}", NO_UTF8)), content)

    _edit_members(random, path, edit)


def lose_member(random: Random, path: Path, other: Path | None) -> None:
    _edit_members(random, path, lambda members: members.pop(random.randrange(len(members))) and None)


def cut_member(random: Random, path: Path, other: Path | None) -> None:
    def edit(members: list[tuple[str, bytes]]) -> None:
        number = random.randrange(len(members))
        name, content = members[number]
        members[number] = (name, random.choice((b"", content[: len(content) // 2], content * 2, random.randbytes(99))))

    _edit_members(random, path, edit)


def large_member(random: Random, path: Path, other: Path | None) -> None:
    """A member that holds far more, packed, than its format can need."""

    def edit(members: list[tuple[str, bytes]]) -> None:
        number = random.randrange(len(members))
        members[number] = (members[number][0], members[number][1] + bytes(500_000_000))

    _edit_members(random, path, edit)


def trailing_gzip(random: Random, path: Path, other: Path | None) -> None:
    path.write_bytes(path.read_bytes() + gzip.compress(random.randbytes(1000)))


# Images.

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n"


def other_format(random: Random, path: Path, other: Path | None) -> None:
    """The name stays, the content is an image of a format that the name does not tell."""
    from PIL import Image

    image = Image.effect_noise((32, 32), 50).convert("RGB")
    formats = (
        "GIF",
        "TIFF",
        "PPM",
        "ICO",
        "TGA",
        "PCX",
        "SGI",
        "PDF",
        "ICNS",
        "JPEG2000",
        "BMP",
        "PNG",
        "JPEG",
        "WEBP",
    )
    name = random.choice((*formats, "EPS", "EPS"))
    buffer = io.BytesIO()
    if name == "EPS":
        buffer.write(EPS)
    else:
        image.save(buffer, name)
    path.write_bytes(buffer.getvalue())


def huge_image(random: Random, path: Path, other: Path | None) -> None:
    """A small PNG file that says it has very many pixels."""
    side = random.choice((13_000, 20_000, 60_000, 2**31 - 1))

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = zlib.compress(bytes(1 + 3 * side) * 10) if side < 2**31 - 1 else zlib.compress(bytes(100))
    parts = (
        chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
        chunk(b"IDAT", rows),
        chunk(b"IEND", b""),
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def is_json(path: Path) -> bool:
    """A JSON document, by its content; or a file with many, or with one in its header."""
    if path.suffix in (".jsonl", ".safetensors"):
        return True
    if not path.is_file() or path.stat().st_size > 1_000_000 or path.suffix in IMAGES:
        return False
    try:
        return isinstance(json.loads(path.read_bytes()), dict | list)
    except ValueError:
        return False


def _is_file(path: Path) -> bool:
    return path.is_file()


def _is_folder(path: Path) -> bool:
    return path.is_dir()


def _is_step(path: Path) -> bool:
    return path.is_dir() and path.name.isdigit()


def _is_lines(path: Path) -> bool:
    return path.suffix in (".jsonl", ".txt")


def _is_text(path: Path) -> bool:
    return path.suffix in (".json", ".jsonl", ".txt")


def _is_archive(path: Path) -> bool:
    return path.name.endswith((*ARCHIVES, ".npz"))


def _is_image(path: Path) -> bool:
    return path.suffix in IMAGES


def _no_checkpoint(path: Path) -> bool:
    """A FIFO in a checkpoint would hang the library's threads, and only who may write there can put one."""
    return path.is_file() and "checkpoints" not in path.parts


KINDS: dict[str, Kind] = {
    "flip": Kind(_is_file, flip),
    "cut": Kind(_is_file, cut),
    "empty": Kind(_is_file, empty),
    "grow": Kind(_is_file, grow),
    "zero_block": Kind(_is_file, zero_block),
    "noise": Kind(_is_file, noise),
    "swap": Kind(_is_file, swap),
    "foreign": Kind(lambda path: True, foreign),
    "remove": Kind(lambda path: True, remove),
    "folder_instead": Kind(_is_file, folder_instead),
    "dangling_link": Kind(lambda path: True, dangling_link),
    "fifo": Kind(_no_checkpoint, fifo),
    "file_instead": Kind(_is_folder, file_instead),
    "emptied": Kind(_is_folder, emptied),
    "renamed_step": Kind(_is_step, renamed_step),
    "copied_step": Kind(_is_step, copied_step),
    "other_step": Kind(_is_step, other_step),
    "stray": Kind(_is_folder, stray),
    "double_line": Kind(_is_lines, double_line),
    "lose_line": Kind(_is_lines, lose_line),
    "swap_lines": Kind(_is_lines, swap_lines),
    "join_lines": Kind(_is_lines, join_lines),
    "blank_line": Kind(_is_lines, blank_line),
    "not_utf8": Kind(_is_text, not_utf8),
    "utf16": Kind(_is_text, utf16),
    "rename_key": Kind(is_json, rename_key),
    "lose_key": Kind(is_json, lose_key),
    "other_type": Kind(is_json, other_type),
    "other_digit": Kind(is_json, other_digit),
    "foreign_module": Kind(is_json, foreign_module),
    "other_document": Kind(is_json, other_document),
    "key_twice": Kind(is_json, key_twice),
    "odd_array": Kind(lambda path: path.suffix == ".npz", odd_array),
    "odd_npy": Kind(lambda path: path.suffix == ".npy", odd_npy),
    "huge_npy": Kind(lambda path: path.suffix == ".npy", huge_npy),
    "rename_member": Kind(_is_archive, rename_member),
    "lose_member": Kind(_is_archive, lose_member),
    "cut_member": Kind(_is_archive, cut_member),
    "large_member": Kind(_is_archive, large_member),
    "trailing_gzip": Kind(lambda path: path.name.endswith(".tar.gz"), trailing_gzip),
    "other_format": Kind(_is_image, other_format),
    "huge_image": Kind(_is_image, huge_image),
}
