"""The prediction of how training scales: a case computed by hand, and the table of its page."""

import pytest

from benchmarks import scaling
from tests.documents import prose


def test_an_exchange_takes_what_its_bytes_or_its_hops_take():
    assert (scaling.Slice(16).hops, scaling.Slice(256).hops, scaling.Slice(1024).hops, scaling.Slice(1024).pods) == (
        12,
        32,
        32,
        4,
    )
    assert scaling.exchange_seconds(100e6, scaling.Slice(256), 1e-6) == pytest.approx(1e-3)
    assert scaling.exchange_seconds(100e6, scaling.Slice(16), 1e-6) == pytest.approx(2e-3)  # open sides
    assert scaling.exchange_seconds(100, scaling.Slice(256), 1e-6) == pytest.approx(32e-6)
    assert scaling.exchange_seconds(100e6, scaling.Slice(1024), 1e-6) == pytest.approx(1e-3 + 1.5 * 100e6 / 800e9)
    assert scaling.exchange_seconds(100, scaling.Slice(1024), 1e-6) == pytest.approx(132e-6)


def test_exchanges_are_added_to_what_is_computed():
    case = {"megacycles": 1.5, "collective_bytes": [100, 100e6, 200]}  # 1 ms of computing
    assert scaling.efficiency(case, scaling.Slice(256), 1e-6) == pytest.approx(1 / (1 + 1 + 2 * 0.032))
    assert scaling.efficiency(case, scaling.Slice(256), 1e-6, joins_moments=False) == pytest.approx(1 / 2)


def test_the_page_has_the_table():
    assert scaling.table() in prose("docs/scaling.md")
