"""Damaged images, archives, decoded copies and TFDS directories: what is sound of them, or one sentence."""

import pytest

from tests.faults.fuzz import check

CASES = {
    "images": 12, "images_decoded": 8, "cifar_archive": 12, "cifar_decoded": 8, "cifar_orphan": 6, "cifar_folder": 8,
    "tiny_archive": 12, "tiny_folder": 8, "tfds": 10,
}  # fmt: skip


@pytest.mark.parametrize("operation", CASES)
def test_right_or_one_sentence(fuzz, operation):
    check(fuzz, operation, CASES[operation])
