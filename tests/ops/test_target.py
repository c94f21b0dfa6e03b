"""What "auto" computes in follows from the devices that a program is for."""

from types import SimpleNamespace

import jax
import pytest

from dctps_jax.ops.target import auto_dtype, training_devices
from dctps_jax.training.placement import place_on
from tests.absent_tpu import absent_devices

DEVICES = {
    "cpu": (SimpleNamespace(platform="cpu"), "float32"),
    "tpu": (SimpleNamespace(platform="tpu"), "bfloat16"),
    "V100": (SimpleNamespace(platform="gpu", compute_capability="7.0"), "float32"),
    "A100": (SimpleNamespace(platform="gpu", compute_capability="8.0"), "bfloat16"),
    "H100": (SimpleNamespace(platform="gpu", compute_capability="9.0"), "bfloat16"),
    "B200": (SimpleNamespace(platform="gpu", compute_capability="10.0"), "bfloat16"),
    "not NVIDIA's": (SimpleNamespace(platform="gpu", compute_capability="gfx90a"), "float32"),
    "unknown": (SimpleNamespace(platform="gpu"), "float32"),
}


@pytest.mark.parametrize("name", DEVICES)
def test_auto_is_half_precision_where_the_device_has_bfloat16(name):
    device, dtype = DEVICES[name]
    assert auto_dtype(device) == dtype


def test_a_placement_knows_it():
    assert place_on(training_devices()[:2]).auto_dtype == "float32"


def test_a_placement_on_a_tpu_that_is_not_there_knows_it(monkeypatch):
    devices = absent_devices(monkeypatch)
    assert jax.default_backend() == "cpu" and place_on(devices[:1]).auto_dtype == "bfloat16"
