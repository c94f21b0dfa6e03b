"""Files that hold many images each: which files belong to which split, and which row lies in which file."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dctps_jax.data.dataset import check_numbering
from dctps_jax.data.reading import read_file, unreadable
from dctps_jax.errors import UserError

# A split has the first of these names that has files.
SPLITS = {"train": ("train",), "test": ("test", "validation", "valid", "val")}
CLASSES = "classes.txt"
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_MAX_BYTES = 2**22


def shards_of(folder: Path, part: str, kind: str) -> list[Path]:
    """Return the files of a part, "train" or "test", in the order of their names.

    ``kind`` is "parquet", "tar" or "array_record". A file belongs to the split with which its name or its folder
    begins: ``train-00000-of-00001.parquet``, ``train/0000.parquet``, ``train.array_record-00000-of-00002``. The test
    part is the split test, or else the validation split. Raises UserError if a part has no file.
    """
    files = sorted(path for path in folder.rglob(f"*.{kind}*") if path.is_file())
    for split in SPLITS[part]:
        pattern = re.compile(rf"(?:.*/)?{split}(?:[-._/][^/]*)?\.{kind}(?:-\d+-of-\d+)?")
        if found := [path for path in files if pattern.fullmatch(path.relative_to(folder).as_posix())]:
            return found
    if compressed := [path for path in files if path.suffix in COMPRESSED]:
        raise UserError(f"{compressed[0]} is compressed; uncompress it and the others like it")
    among = f"among its {len(files)} {kind} files" if files else f"and no {kind} file at all"
    raise UserError(
        f"{folder} (config.data.dir) has no file {SPLITS[part][0]}*.{kind} {among}; set config.data.dir to a folder "
        f"that has them, for train and for {' or '.join(SPLITS['test'])}"
    )


def class_names_in(folder: Path, labels: Sequence[np.ndarray]) -> tuple[str, ...]:
    """Return the names of the classes: the lines of ``classes.txt``, or else the numbers up to the highest label.

    ``labels`` are the labels of the training part and of the test part. Raises UserError for a label without a name,
    for a label below 0, and for numbers without names that leave some out.
    """
    lowest = min(int(part.min(initial=0)) for part in labels)
    highest = max(int(part.max(initial=0)) for part in labels)
    path = folder / CLASSES
    if path.exists():
        lines = read_file(path, _MAX_BYTES).decode("utf-8-sig", "replace").splitlines()
        names = tuple(line.strip() for line in lines if line.strip())
    else:
        names = tuple(map(str, range(highest + 1)))
    if lowest < 0 or highest >= len(names):
        raise UserError(
            f"{folder} has labels from {lowest} to {highest}, but they must be numbers of classes from 0 to "
            f"{len(names) - 1}; write a label for each image, and a line for each class in {CLASSES}"
        )
    if not path.exists():
        how = f"write the name of each class on a line of {path.name}, in config.data.dir"
        check_numbering(f"{folder} (config.data.dir)", labels[0], highest + 1, how)
    return names


def digest_of_files(folder: Path, files: Sequence[Path]) -> str:
    """Return a hex digest of the names of files below ``folder`` and of their sizes."""
    entries = []
    for path in sorted(files):
        try:
            entries.append((path.relative_to(folder).as_posix(), path.stat().st_size))
        except OSError as error:
            raise unreadable(path, error, "restore it, or remove what refers to it") from error
    content = json.dumps(entries).encode(errors="surrogateescape")
    return hashlib.sha256(content).hexdigest()


class RowsInShards:
    """Finds the shard of a row, and its row there; ``lengths`` are the numbers of rows of each shard."""

    def __init__(self, lengths: Sequence[int]):
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def find(self, row: int) -> tuple[int, int]:
        """Return the number of the shard, and the row in it."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        shard = int(np.searchsorted(self._starts, row, "right")) - 1
        return shard, row - int(self._starts[shard])
