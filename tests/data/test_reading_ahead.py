"""Reading in the background: in order, with the errors of the reader, and without a hang where a process ends."""

import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest

from dctps_jax.data.reading_ahead import one_ahead, read_ahead
from dctps_jax.errors import UserError
from tests.documents import REPO

ROWS = np.random.default_rng(0).permutation(100)


@dataclass
class Numbers:
    """Stands in for images: row r is the number r. A row may be one that cannot be read, or end its process."""

    broken: int = -1
    deadly: int = -1

    def __getitem__(self, rows):
        if self.broken in rows:
            raise UserError(f"row {self.broken} is broken")
        if self.deadly in rows:
            os.kill(os.getpid(), signal.SIGKILL)
        return rows.astype(np.uint8)


@pytest.mark.parametrize("multiple_of", [1, 12, 31, 64])
def test_rows_come_in_order_in_equal_blocks(multiple_of):
    rows = np.resize(ROWS, 3 * multiple_of)
    blocks = [*read_ahead(Numbers(), rows, multiple_of)]
    np.testing.assert_array_equal(np.concatenate(blocks), rows)
    assert len({len(block) for block in blocks}) == 1 and multiple_of % len(blocks[0]) == 0


def test_an_error_comes_where_its_row_would():
    blocks = read_ahead(Numbers(broken=int(ROWS[50])), ROWS, 10)
    np.testing.assert_array_equal(np.concatenate([next(blocks) for _ in range(5)]), ROWS[:50])
    with pytest.raises(UserError, match=f"row {ROWS[50]} is broken"):
        next(blocks)


def test_the_error_of_another_process_is_the_same():
    with pytest.raises(UserError, match=f"row {ROWS[50]} is broken"):
        list(read_ahead(Numbers(broken=int(ROWS[50])), ROWS, 10, num_processes=1))


# On a busy machine grain frees memory late.
READER = """
import time
import numpy as np
from grain._src.python.ipc.shared_memory_array import SharedMemoryArray
from dctps_jax.data.reading_ahead import one_ahead, read_ahead

free = SharedMemoryArray.close_shm_async
SharedMemoryArray.close_shm_async = lambda *arguments: (time.sleep(0.5), free(*arguments))

class Images:
    def __getitem__(self, rows):
        return np.zeros((len(rows), 64, 64, 3), np.uint8)

if __name__ == "__main__":
    blocks = one_ahead(read_ahead(Images(), np.arange(64), 32, num_processes=1))
    kept = [next(blocks) for _ in range(2)]
    print(sum(map(len, kept)))
"""


def test_no_shared_memory_is_left(tmp_path):
    (tmp_path / "reader.py").write_text(READER)
    command = [sys.executable, str(tmp_path / "reader.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(REPO)})
    assert (done.returncode, done.stdout, done.stderr) == (0, "64\n", "")


def test_another_process_reads_the_same_until_it_is_killed():
    """SIGTERM and Ctrl-C may reach all processes of a program; only the one that trains acts on them."""
    blocks = read_ahead(Numbers(deadly=int(ROWS[90])), ROWS, 1, num_processes=1)
    taken = [next(blocks) for _ in range(10)]
    np.testing.assert_array_equal(np.concatenate(taken), ROWS[:10])
    for process in multiprocessing.active_children():
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGINT)
    taken = [next(blocks) for _ in range(40)]
    np.testing.assert_array_equal(np.concatenate(taken), ROWS[10:50])
    with pytest.raises(UserError, match=r"a process that reads images ended.*data\.processes"):
        list(blocks)


def test_one_value_is_asked_for_ahead():
    asked = []

    def values():
        for number in range(3):
            asked.append(number)
            yield number

    taken = [(value, len(asked)) for value in one_ahead(values())]
    assert taken == [(0, 2), (1, 3), (2, 3)]
