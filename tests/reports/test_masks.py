"""Tables, overlap and figure of runs' masks."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dctps_jax import UserError
from dctps_jax.pruning import save_masks
from dctps_jax.reports.figures import figure_files
from dctps_jax.reports.masks import density_table, draw_masks, jaccard, layer_overlaps, load_runs, overlap_table

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


def test_tables_of_many_runs_have_a_line_for_each(drawn, caplog):
    runs = {f"pruning.method=epl,seed={seed}": FIRST if seed else SECOND for seed in range(5)}
    head, first, *_ = density_table(runs).splitlines()
    assert head.split() == ["run", "conv", "fc", "total"] and first.split() == [
        "pruning.method=epl,seed=0", "50", "%", "0", "%", "25", "%",
    ]  # fmt: skip
    head, first, *_ = overlap_table(runs).splitlines()
    assert head.split() == ["overlap", "1", "2", "3", "4", "5"]
    assert first.split() == ["1", "pruning.method=epl,seed=0", "1.000", *["0.250"] * 4]
    draw_masks({str(number): FIRST for number in range(56)}, "masks.png")
    assert not caplog.messages
    draw_masks({str(number): FIRST for number in range(57)}, "masks.png")
    assert caplog.messages == ["the figure has 57 runs, and 56 looks to tell them apart; give fewer runs"]


def test_figure_with_an_empty_layer(tmp_path):
    draw_masks({"first": FIRST, "second": SECOND}, tmp_path / "masks.png")
    assert (tmp_path / "masks.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "masks.svg").read_text()


@pytest.fixture
def drawn(monkeypatch):
    """The figures, which are not saved."""
    figures = []
    monkeypatch.setattr("dctps_jax.reports.masks.save_figure", lambda figure, output: figures.append(figure))
    return figures


def test_overlap_by_layer():
    np.testing.assert_allclose(layer_overlaps(FIRST, SECOND), [1 / 3, 0])
    np.testing.assert_allclose(layer_overlaps(SECOND, SECOND), [1, np.nan])


def test_equal_runs_are_told_apart_and_their_overlap_is_drawn(drawn):
    moved = {path: mask[::-1] for path, mask in FIRST.items()}
    draw_masks({f"run{number}": moved if number == 1 else FIRST for number in range(9)}, "masks.png")
    above, below = drawn[0].axes
    assert len({tuple(line.get_xdata()) for line in above.lines}) == 9
    assert len({(line.get_color(), line.get_marker(), str(line._unscaled_dash_pattern)) for line in above.lines}) == 9
    assert [list(line.get_ydata()) for line in below.lines] == [[0, 0], *[[1, 1]] * 7]
    assert below.get_title() == "overlap with run0"
    draw_masks({"a": FIRST}, "masks.png")
    assert len(drawn[1].axes) == 1  # nothing to compare


def test_layers_without_weights_are_explained_where_there_are_some(drawn):
    draw_masks({"a": FIRST, "b": SECOND}, "masks.png")
    draw_masks({"a": FIRST, "b": FIRST}, "masks.png")
    texts = [[text.get_text() for text in figure.legends[0].get_texts()] for figure in drawn]
    assert texts == [["a", "b", "no weight trained"], ["a", "b"]]
    assert drawn[0].legends[0].legend_handles[-1].get_color() == "0.4"  # the colour of no run
    assert drawn[0].axes[0].get_ylabel() == "weights trained (%)"


def test_names_are_the_fields_that_differ_in_lines_that_end_at_commas(tmp_path, drawn):
    rates, densities = (0.001, 0.01), (0.005, 0.05)
    for rate, density in itertools.product(rates, densities):
        folder = tmp_path / "grid" / f"num_epochs=5,optimizer.learning_rate={rate},pruning.density={density}"
        folder.mkdir(parents=True)
        save_masks(folder / "masks.npz", FIRST)
    draw_masks(load_runs([tmp_path / "grid"]), "masks.png")
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == [
        f"optimizer.learning_rate={rate},\npruning.density={density}"
        for rate, density in itertools.product(rates, densities)
    ]


def test_runs_must_fit_each_other(tmp_path):
    for name, masks in (("a", FIRST), ("b", {"conv": FIRST["conv"]}), ("dense", {})):
        (tmp_path / name).mkdir()
        save_masks(tmp_path / name / "masks.npz", masks)
    assert list(load_runs([tmp_path / "a"])) == ["a"]
    other_shape = FIRST | {"fc": np.zeros((3, 2, 2), bool)}
    (tmp_path / "c").mkdir()
    save_masks(tmp_path / "c" / "masks.npz", other_shape)
    a, b, c = (tmp_path / name for name in "abc")
    for pair, sentence in (
        ((a, b), f"{b} has other layers than {a}: fc is in {a} and not in {b}; "),
        ((b, a), f"{a} has other layers than {b}: fc is in {a} and not in {b}; "),
        ((a, c), f"{c} has other layers than {a}: fc is 3×2×2 there and 2×2 here; "),
    ):
        with pytest.raises(UserError, match=re.escape(sentence)):
            load_runs(pair)
    with pytest.raises(UserError, match=r"no masks to compare: .*dense trained dense networks; name a sparse run"):
        load_runs([tmp_path / "dense"])


def test_a_dense_run_is_left_out_and_named(tmp_path, caplog):
    for name, masks in (("dense", {}), ("a", FIRST), ("grid/b", SECOND), ("grid/dense", {})):
        (tmp_path / name).mkdir(parents=True)
        save_masks(tmp_path / name / "masks.npz", masks)
    assert list(load_runs([tmp_path / name for name in ("dense", "a", "grid")])) == ["a", "grid/b"]
    left_out = [record.getMessage() for record in caplog.records]
    assert [text.split(" is left out: ")[0] for text in left_out] == [
        str(tmp_path / "dense"),
        str(tmp_path / "grid/dense"),
    ]


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
    assert list(load_runs([Path(), tmp_path / "b" / "run"])) == ["a/run", "b/run"]
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
    assert list(load_runs([tmp_path / "rigl"])) == ["seed_0", "seed_1"]
    runs = load_runs([tmp_path / "rigl" / "seed_0" / "masks_initial.npz", tmp_path / "rigl" / "seed_0"])
    assert jaccard(*runs.values()) == 1 / 4 and list(runs) == ["seed_0/masks_initial.npz", "seed_0"]


def test_formats_of_figures(tmp_path):
    draw_masks({"a": FIRST}, tmp_path / "masks.pdf", "lenet on digits")
    assert (tmp_path / "masks.pdf").read_bytes().startswith(b"%PDF") and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(UserError, match=r"masks\.jpg; figures are written as \.png and \.svg, or as \.pdf"):
        figure_files(tmp_path / "masks.jpg")


def test_networks_that_keep_nothing_can_be_drawn(tmp_path):
    draw_masks({"none": {"fc": np.zeros((2, 2), bool)}}, tmp_path / "masks.png")
    assert (tmp_path / "masks.png").exists()


def test_masks_of_a_run_that_still_moves_its_weights_are_refused(tmp_path):
    save_masks(tmp_path / "masks.npz", FIRST)
    (tmp_path / "config.json").write_text('{"sparse_training": {"method": "rigl"}}')
    with pytest.raises(UserError, match="still moves its weights"):
        load_runs([tmp_path])
    (tmp_path / "results.json").write_text('{"layer_densities": {"conv": 0.5, "fc": 0.25}}')
    assert list(load_runs([tmp_path])) == [tmp_path.name]
