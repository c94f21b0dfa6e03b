"""`experiments/start.py`: what it measures, and that its figures are drawn."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import start, start_figures

RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.normal(size=(512, 32, 32, 3)).astype(np.float32), RNG.integers(0, 10, 512)
BATCH = jnp.asarray(IMAGES[:16]), jnp.asarray(LABELS[:16])


def test_likeness():
    assert start.likeness(jnp.ones((4, 3))) == pytest.approx(1)
    assert start.likeness(jnp.eye(4)) == pytest.approx(0, abs=1e-6)
    assert start.likeness(jnp.array([[1.0, 0], [-2, 0]])) == pytest.approx(-1)


def test_networks_at_the_start():
    found = start.at_start("fixup_resnet20", {}, "dct", BATCH)
    assert found["loss"] == pytest.approx(math.log(10), abs=1e-4)  # Fixup networks begin with a zero head
    assert len(found["likeness"]) == 20 and all(-1 <= value <= 1.001 for value in found["likeness"].values())


def test_what_is_measured_while_a_network_learns():
    found = start.early("lenet", 0.01, "dct", 2, IMAGES, LABELS)
    assert [row["step"] for row in found["rows"]] == [0, 1, 2]
    first, last = (found["rows"][number]["layers"][-1] for number in (0, -1))
    assert first["S"] == 0 and last["S"] > 0
    # D [84, 10] is a corner of an orthonormal matrix with whole columns; α starts at 1.
    assert first["alpha D"] == pytest.approx(math.sqrt(10), rel=1e-5)
    assert found["rows"][0]["gradient of BatchNorm"] is None


def test_figures(tmp_path):
    cases = [
        start.at_start(name, {}, offset, BATCH) for name in ("lenet", "fixup_resnet20") for offset in ("dct", None)
    ]
    # The figure has a panel for each of four networks.
    named = [case | {"network": name} for name in start_figures.BY_LAYER for case in cases[:2]]
    early = [start.early("lenet", 0.01, offset, 1, IMAGES, LABELS) for offset in ("dct", None)]
    start_figures.draw({"at start": named, "early": early}, tmp_path)
    assert {file.name for file in tmp_path.glob("*.png")} == {"loss.png", "likeness.png", "early.png"}
