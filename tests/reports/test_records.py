"""Which fields of a config tell runs apart, and what a report is called."""

import optax
import pytest

from configs import lenet_digits
from dctps_jax.optimizers import OPTIMIZERS, Optimizer
from dctps_jax.reports.records import Record, read_records
from dctps_jax.reports.settings import differing, has_effect, method_name, title_of


@pytest.mark.parametrize(("name", "expected"), [("sgd", True), ("nesterov", True), ("adam", False), ("signum", True)])
def test_momentum_tells_runs_apart_of_each_optimiser_that_takes_it(monkeypatch, name, expected):
    """Also of one that was added, as docs/extending.md does."""
    monkeypatch.setitem(OPTIMIZERS, "signum", Optimizer(lambda momentum: optax.trace(momentum)))
    assert has_effect("optimizer.momentum", {"optimizer.name": name}) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("image_folder", "lenet on birds"),
        ("parquet_folder", "lenet on birds"),
        ("webdataset_folder", "lenet on birds"),
        ("cifar10", "lenet on cifar10"),
        ("my_package.images:load", "lenet on my_package.images:load"),
    ],
)
def test_a_folder_goes_by_its_name(name, expected):
    assert title_of([{"model.name": "lenet", "data.name": name, "data.dir": "images/birds"}]) == expected
    assert title_of([{"model.name": "lenet", "data.name": name}]) == f"lenet on {name}"


@pytest.mark.parametrize("densities", [(), (("conv1", 0.5),)])
def test_a_dense_network_has_no_method(tmp_path, densities):
    """Its method has no effect. A layer with a density of its own makes it sparse."""
    config = lenet_digits.get_config()
    config.pruning.density, config.pruning.layer_densities = 1.0, densities
    for method in ("epl", "erk"):
        config.pruning.method = method
        (tmp_path / method).mkdir()
        (tmp_path / method / "config.json").write_text(config.to_json())
    settings = {record.setting for record in read_records(tmp_path)}
    assert {method_name(setting) for setting in settings} == ({"epl", "erk"} if densities else {"dense"})
    assert len(settings) == (2 if densities else 1)


def test_a_field_that_was_added_since_a_run_has_the_value_that_it_trained_with():
    config = {"model.name": "lenet", "model.offset": "dct", "pruning.method": "epl", "pruning.density": 0.1}
    old, same, other = (
        Record("", config | added, None, []).setting
        for added in ({}, {"optimizer.kernel_rate": 1.0}, {"optimizer.kernel_rate": 0.0})
    )
    assert old == same != other
    assert differing([old, other]) == ["optimizer.kernel_rate"]
