"""The figure of validation accuracy by epoch."""

import json

import pytest

from dctps_jax import UserError
from dctps_jax.analysis.curves import _labels, _setting_of, draw_curves


def make_run(folder, density, offset, seed, accuracies):
    folder.mkdir()
    config = {
        "seed": seed,
        "pruning": {"density": density, "method": "epl"},
        "model": {"offset": offset, "name": "lenet"},
        "data": {"name": "digits"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    rows = ({"epoch": epoch + 1, "step": epoch, "val_accuracy": value} for epoch, value in enumerate(accuracies))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_seeds_share_a_line(tmp_path):
    runs = [
        make_run(tmp_path / "a", 0.01, "dct", 0, [0.1, 0.3, 0.4]),
        make_run(tmp_path / "b", 0.01, "dct", 1, [0.2, 0.4]),
        make_run(tmp_path / "c", 0.01, None, 0, [0.1, 0.1, 0.1]),
    ]
    settings = [_setting_of(json.loads((run / "config.json").read_text())) for run in runs]
    assert settings[0] == settings[1] != settings[2]
    assert _labels(settings) == {settings[0]: "1 %, α·DCT + sparse", settings[2]: "1 %, sparse"}
    draw_curves(runs, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    figure = (tmp_path / "curves.svg").read_text()
    assert "<svg" in figure


def test_runs_without_rows_are_named(tmp_path):
    run = make_run(tmp_path / "a", 0.01, "dct", 0, [])
    with pytest.raises(UserError, match=r"metrics\.jsonl has no rows"):
        draw_curves([run], tmp_path / "curves.png")
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        draw_curves([tmp_path / "none"], tmp_path / "curves.png")
