"""Tables, overlap and figure of runs' masks."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dctps_jax import UserError
from dctps_jax.pruning import save_masks
from dctps_jax.reports.figures import figure_files
from dctps_jax.reports.masks import density_table, draw_densities, jaccard, load_runs, overlap_table

FIRST = {"conv": np.array([True, True, False, False]), "fc": np.array([[True, False], [False, False]])}
SECOND = {"conv": np.array([True, False, True, False]), "fc": np.zeros((2, 2), bool)}


def test_overlap_is_intersection_over_union():
    assert jaccard(FIRST, FIRST) == 1.0
    assert jaccard(FIRST, SECOND) == 1 / 4
    assert jaccard({"a": np.zeros(3, bool)}, {"a": np.zeros(3, bool)}) == 1.0


def test_tables():
    runs = {"first": FIRST, "second": SECOND}
    assert density_table(runs).splitlines() == [
        "layer   first  second",
        "conv     50 %    50 %",
        "fc       25 %     0 %",
        "total  37.5 %    25 %",
    ]
    assert overlap_table(runs).splitlines()[1].split() == ["first", "1.000", "0.250"]


def test_figure_with_an_empty_layer(tmp_path):
    draw_densities({"first": FIRST, "second": SECOND}, tmp_path / "masks.png")
    assert (tmp_path / "masks.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "masks.svg").read_text()


def test_runs_must_fit_each_other(tmp_path):
    for name, masks in (("a", FIRST), ("b", {"conv": FIRST["conv"]}), ("dense", {})):
        (tmp_path / name).mkdir()
        save_masks(tmp_path / name / "masks.npz", masks)
    assert list(load_runs([tmp_path / "a"])) == ["a"]
    with pytest.raises(UserError, match="has other layers than"):
        load_runs([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(UserError, match="trained a dense network"):
        load_runs([tmp_path / "dense"])


def test_command(tmp_path):
    (tmp_path / "a").mkdir()
    save_masks(tmp_path / "a" / "masks.npz", FIRST)
    command = [sys.executable, "-m", "dctps_jax.reports.masks", "--output", str(tmp_path / "figure.png")]
    done = subprocess.run([*command, str(tmp_path / "a")], capture_output=True, text=True, check=True)
    assert "total  37.5 %" in done.stdout and (tmp_path / "figure.png").exists()
    failed = subprocess.run([*command, str(tmp_path / "none")], capture_output=True, text=True)
    assert failed.returncode == 2 and "masks.npz does not exist" in failed.stderr and "Traceback" not in failed.stderr


def test_names_and_files_of_a_figure(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name / "run").mkdir(parents=True)
        save_masks(tmp_path / name / "run" / "masks.npz", FIRST)
    monkeypatch.chdir(tmp_path / "a" / "run")
    assert list(load_runs([Path(), tmp_path / "b" / "run"])) == ["run", str(tmp_path / "b" / "run")]
    with pytest.raises(UserError, match="named twice"):
        load_runs([Path(), tmp_path / "b" / "run", tmp_path / "a" / "run"])
    assert [file.name for file in figure_files(tmp_path / "density0.05")] == ["density0.05.png", "density0.05.svg"]
    with pytest.raises(UserError, match="is no directory"):
        figure_files(tmp_path / "none" / "figure.png")


def test_seeds_and_the_masks_before_and_after_moves_are_compared(tmp_path):
    for seed in (0, 1):
        folder = tmp_path / "rigl" / f"seed_{seed}"
        folder.mkdir(parents=True)
        save_masks(folder / "masks_initial.npz", FIRST)
        save_masks(folder / "masks.npz", SECOND)
    assert list(load_runs([tmp_path / "rigl"])) == ["rigl/seed_0", "rigl/seed_1"]
    runs = load_runs([tmp_path / "rigl" / "seed_0" / "masks_initial.npz", tmp_path / "rigl" / "seed_0"])
    assert jaccard(*runs.values()) == 1 / 4 and list(runs) == ["seed_0/masks_initial.npz", "seed_0"]


def test_formats_of_figures(tmp_path):
    draw_densities({"a": FIRST}, tmp_path / "masks.pdf", "lenet on digits")
    assert (tmp_path / "masks.pdf").read_bytes().startswith(b"%PDF") and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(UserError, match=r"masks\.jpg; figures are written as \.png and \.svg, or as \.pdf"):
        figure_files(tmp_path / "masks.jpg")


def test_networks_that_keep_nothing_can_be_drawn(tmp_path):
    draw_densities({"none": {"fc": np.zeros((2, 2), bool)}}, tmp_path / "masks.png")
    assert (tmp_path / "masks.png").exists()


def test_masks_of_a_run_that_still_moves_its_weights_are_refused(tmp_path):
    save_masks(tmp_path / "masks.npz", FIRST)
    (tmp_path / "config.json").write_text('{"sparse_training": {"method": "rigl"}}')
    with pytest.raises(UserError, match="still moves its weights"):
        load_runs([tmp_path])
    (tmp_path / "results.json").write_text('{"layer_densities": {"conv": 0.5, "fc": 0.25}}')
    assert list(load_runs([tmp_path])) == [tmp_path.name]
