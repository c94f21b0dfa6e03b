"""Damaged files of a run, its export and its tables: the result of sound files or one sentence; nothing is lost."""

import pytest

from tests.faults.fuzz import check

CASES = {
    "resume": 6, "again": 15, "restore": 12, "export_best": 15, "export_latest": 8, "predict": 10, "report": 3,
    "report_of_records": 2, "curves": 3, "masks": 3,
}  # fmt: skip


@pytest.mark.parametrize("operation", CASES)
def test_right_or_one_sentence(fuzz, operation):
    check(fuzz, operation, CASES[operation])
