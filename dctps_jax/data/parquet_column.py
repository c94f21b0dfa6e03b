"""Read one column of parquet files by row. Needs pyarrow."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dctps_jax.data.reading import parsing
from dctps_jax.data.shards import RowsInShards


class ParquetColumn:
    """The values of columns of parquet files, one file after another; ``lengths`` are the numbers of rows of each file.

    Parquet stores rows in groups that can only be read as a whole. Each thread keeps the last group that it has read.
    So rows in order read each group once, but rows in random order read a group each.
    """

    def __init__(self, paths: Sequence[Path], columns: Sequence[str], advice: str):
        import pyarrow.parquet

        self.paths, self._columns, self._advice = list(paths), list(columns), advice
        self._metadata: list[Any] = []
        for path in self.paths:
            with parsing(path, advice):
                self._metadata.append(pyarrow.parquet.read_metadata(path))
        self.lengths = [metadata.num_rows for metadata in self._metadata]
        self._rows = RowsInShards(self.lengths)
        self._groups = [
            RowsInShards([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)])
            for metadata in self._metadata
        ]
        self._kept = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._kept = threading.local()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> tuple[Path, int, Any]:
        """Return the file of a row, its number in the file, and its value."""
        import pyarrow.parquet

        shard, number = self._rows.find(row)
        group, place = self._groups[shard].find(number)
        path = self.paths[shard]
        if getattr(self._kept, "place", None) != (shard, group):
            with (
                parsing(path, self._advice),
                pyarrow.parquet.ParquetFile(path, metadata=self._metadata[shard]) as file,
            ):
                table = file.read_row_group(group, columns=[self._columns[shard]])
                self._kept.place, self._kept.values = (shard, group), table.column(0)
        return path, number, self._kept.values[place].as_py()
