"""`experiments/trials.py`: each trial changes what it says, runs are kept and not made twice, and the table."""

import json
import math
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dctps_jax.models import prunable_layers
from experiments import trials


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part, count in (("train", 80), ("test", 5)):
        for name in "ab":
            directory = root / part / name
            directory.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(directory / f"{number}.png")
    return root


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["trials.py", *map(str, arguments)])
    trials.main()


def test_runs_are_kept_and_made_once(folder, tmp_path, monkeypatch, capsys):
    file = tmp_path / "new" / "runs.jsonl"
    command = folder, file, "--epochs", 3, "--seeds", 0, "--densities", 0.01, "--trials", "as in the paper"
    run(monkeypatch, *command)
    lines = file.read_text().splitlines()
    run(monkeypatch, *command)
    assert file.read_text().splitlines() == lines and len(lines) == 1
    found = json.loads(lines[0])
    assert found["trial"] == "as in the paper" and found["seed"] == 0
    assert math.isfinite(found["train_loss"][0]) and 0 <= found["test_accuracy"] <= 1
    capsys.readouterr()
    run(monkeypatch, "--table", file)
    assert f"| as in the paper | {100 * found['val_accuracy'][2]:.1f} |" in capsys.readouterr().out
    run(monkeypatch, "--draw", file)
    assert file.with_suffix(".png").exists()
    file.write_text(file.read_text() + json.dumps(found | {"epochs": 5}) + "\n")
    with pytest.raises(SystemExit, match="several networks or numbers of epochs"):
        run(monkeypatch, "--table", file)


def test_shards_share_the_runs(folder, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        trials, "train", lambda *arguments: made.append(arguments[1]) or {"test_accuracy": 0.0, "seconds": 0}
    )
    for number in range(2):
        run(monkeypatch, folder, tmp_path / "runs.jsonl", "--seeds", 0, "--densities", 0.01, "--shard", number, 2)
    assert len(made) == len(trials.TRIALS) and set(made) == set(trials.TRIALS.values())


def test_new_networks():
    def layers(trial):
        return prunable_layers(trials.make_model("lenet", trial, 0.01, 0)).values()

    for layer in layers(trials.Trial(alpha=0.5, signs=0.1)):
        assert (layer.alpha[...] == 0.5).all()
        np.testing.assert_allclose(jnp.abs(layer.kernel[...]), 0.1, rtol=1e-6)
    for layer in layers(trials.Trial(by_variance=True)):
        fan_in = math.prod(layer.kernel_shape[:-1])
        assert jnp.mean(layer.effective_kernel() ** 2) == pytest.approx(2 / fan_in, rel=1e-4)
    for layer in layers(trials.Trial(offset=None)):
        assert layer.alpha is None and (layer.kernel[...] != 0).any()


@pytest.mark.parametrize(
    ("trial", "factors"),
    [
        (trials.Trial(), (1, 1, 1)),
        (trials.Trial(alpha_rate=0), (0, 1, 1)),
        (trials.Trial(sparse_rate=3), (1, 3, 1)),
        (trials.Trial(warm_up=1), (0, 0, 0)),
    ],
)
def test_rates(trial, factors):
    params = {"layer": {"alpha": jnp.ones(()), "kernel": jnp.ones(3), "bias": jnp.ones(3)}}
    optimizer = trials.make_optimizer(trial, params, 10, 2)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    for name, factor in zip(("alpha", "kernel", "bias"), factors, strict=True):
        np.testing.assert_allclose(updates["layer"][name], -1e-3 * factor, rtol=1e-2, atol=1e-9)
