"""The prediction of how training scales: a case computed by hand, and the table of its page."""

import pytest

from benchmarks import scaling
from tests.documents import prose

FAST = scaling.Latency(1e-6, 50e-6)


def test_an_exchange_takes_what_its_bytes_or_its_hops_take():
    slices = {chips: scaling.Slice(chips) for chips in (16, 256, 1024)}
    assert [slice_.hops for slice_ in slices.values()] == [12, 32, 32] and slices[1024].pods == 4
    assert scaling.exchange_seconds(100e6, slices[256], FAST) == pytest.approx(1e-3)
    assert scaling.exchange_seconds(100e6, slices[16], FAST) == pytest.approx(2e-3)  # open sides
    assert scaling.exchange_seconds(100, slices[256], FAST) == pytest.approx(32e-6)
    assert scaling.exchange_seconds(100e6, slices[1024], FAST) == pytest.approx(1e-3 + 1.5 * 100e6 / 800e9)
    assert scaling.exchange_seconds(100, slices[1024], FAST) == pytest.approx(132e-6)


def test_exchanges_are_added_to_what_is_computed():
    case = {"megacycles": 1.5, "collective_bytes": [100, 100e6, 200]}  # 1 ms of computing
    step = scaling.predict(case, scaling.Slice(256), FAST)
    assert step == pytest.approx((1e-3, 1e-3, 64e-6))
    assert step.efficiency == pytest.approx(1 / 2.064)


def test_the_page_has_the_table():
    assert scaling.table() in prose("docs/scaling.md")
