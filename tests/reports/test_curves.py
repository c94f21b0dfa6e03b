"""The figure of validation accuracy by epoch."""

import json

import numpy as np
import pytest

from dctps_jax import UserError
from dctps_jax.reports import curves
from dctps_jax.reports.curves import draw_curves, panel_titles
from dctps_jax.reports.names import without_common_fields
from dctps_jax.reports.records import by_setting, read_all, read_run


def make_run(folder, density, offset, seed, accuracies, method="epl"):
    folder.mkdir()
    config = {
        "seed": seed,
        "pruning": {"density": density, "method": method},
        "model": {"offset": offset, "name": "lenet"},
        "data": {"name": "digits"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    other = {"train_loss": 2.0, "val_loss": 2.1, "learning_rate": 0.001, "images_per_second": 1000.0}
    rows = (
        other | {"epoch": epoch, "step": 10 * epoch, "val_accuracy": value} for epoch, value in enumerate(accuracies, 1)
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_seeds_share_a_line_and_methods_have_panels(tmp_path):
    runs = [
        make_run(tmp_path / "a", 0.01, "dct", 0, [0.1, 0.3, 0.4]),
        make_run(tmp_path / "b", 0.01, "dct", 1, [0.2, 0.4]),
        make_run(tmp_path / "c", 0.01, None, 0, [0.1, 0.1, 0.1]),
        make_run(tmp_path / "d", 0.01, None, 0, [0.1, 0.1, 0.1], method="snip"),
    ]
    records = [read_run(run) for run in runs]
    groups = by_setting(records)
    assert [len(members) for members in groups.values()] == [2, 1, 1]
    assert sorted(panel_titles(list(groups)).values()) == ["epl", "epl", "snip"]
    draw_curves(records, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "curves.svg").read_text()


def test_nothing_lies_outside_the_panels(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, output: drawn.append(figure))
    runs = [
        make_run(tmp_path / "a", 0.01, "dct", 0, [0.1, 0.3]),
        make_run(tmp_path / "b", 0.01, "dct", 1, [0.2, 0.5, 0.7]),
        make_run(tmp_path / "c", 0.01, "dct", 0, [0.1, 0.9], method="snip"),
    ]
    draw_curves([read_run(run) for run in runs], tmp_path / "curves.png")
    panels = drawn[0].axes
    assert len(panels) == 2 and all(axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > 90 for axes in panels)
    # The mean of two seeds, then that of the one which is so far.
    np.testing.assert_allclose(panels[0].lines[0].get_ydata(), [15, 40, 70])
    # A standard deviation on both sides, where there are two.
    (band,) = panels[0].collections
    corners = band.get_paths()[0].vertices
    np.testing.assert_allclose(corners[:, 1].max(), 40 + 20 / np.sqrt(2))
    assert corners[:, 0].max() == 2 and not panels[1].collections
    assert "mean ± deviation of 1–2 seeds" in drawn[0].get_suptitle()


def test_bands_lie_within_the_frame(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, output: drawn.append(figure))
    for accuracies in ((0.1, 0.3), (0.5, 1.0)):
        runs = [
            make_run(tmp_path / f"{accuracies}{seed}", 0.01, "dct", seed, [value])
            for seed, value in enumerate(accuracies)
        ]
        draw_curves([read_run(run) for run in runs], tmp_path / "curves.png")
    tops = [figure.axes[0].get_ylim()[1] for figure in drawn]
    np.testing.assert_allclose(tops, [1.04 * (20 + 20 / np.sqrt(2)), 104])  # no accuracy is above 100 %


def test_each_offset_has_a_line_of_its_own(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, output: drawn.append(figure))
    offsets = ("dct", "hadamard", None)
    runs = [make_run(tmp_path / str(offset), 0.01, offset, 0, [0.1, 0.3]) for offset in offsets]
    draw_curves([read_run(run) for run in runs], tmp_path / "curves.png")
    (panel,) = drawn[0].axes
    labels = [line.get_label() for line in panel.lines]
    assert labels == ["1 %, DCT + sparse", "1 %, Hadamard + sparse", "1 %, sparse"]
    assert len({str(line._unscaled_dash_pattern) for line in panel.lines}) == 3


def test_masks_of_another_run_have_their_own_density(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, output: drawn.append(figure))
    going_on = read_run(make_run(tmp_path / "a", 0.01, None, 0, [0.1], method="from_run"))
    for record in (going_on._replace(results={"density": 0.2}), going_on):
        draw_curves([record], tmp_path / "curves.png")
    labels = [line.get_label() for figure in drawn for line in figure.axes[0].lines]
    assert labels == ["20 %, sparse", "1 %, sparse"]


def test_runs_without_rows_are_left_out(tmp_path, caplog):
    run = make_run(tmp_path / "a", 0.01, "dct", 0, [])
    with pytest.raises(UserError, match=r"a has no rows in metrics\.jsonl"):
        draw_curves([read_run(run)], tmp_path / "curves.png")
    begun = make_run(tmp_path / "b", 0.01, "dct", 0, [0.1])
    draw_curves([read_run(run), read_run(begun)], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").exists() and "a is left out: it has not finished an epoch" in caplog.text
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        read_run(tmp_path / "none")


def test_a_line_at_100_percent_is_not_cut_and_no_tick_is_above_it(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, output: drawn.append(figure))
    for name, accuracies in (("a", [0.99, 1.0, 1.0]), ("b", [0.0, 0.0])):
        draw_curves([read_run(make_run(tmp_path / name, 0.01, "dct", 0, accuracies))], tmp_path / "curves.png")
    (high,), (low,) = (figure.axes for figure in drawn)
    bottom, top = high.get_ylim()
    assert bottom == 0 and 102 < top < 106
    assert max(tick for tick in high.get_yticks() if tick <= top) == 100
    assert low.get_ylim()[1] > 0


def test_runs_of_several_sources_have_names_of_their_own(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        make_run(tmp_path / folder / "run", 0.01, "dct", 0, [0.1])
    sources = [tmp_path / "x" / "run", tmp_path / "y"]
    assert [record.name for record in read_all(sources)] == ["x/run", "y/run"]
    assert [record.name for record in read_all(sources[:1])] == ["run"]


def test_names_keep_the_fields_that_tell_them_apart():
    assert without_common_fields(["a=1,b=2", "a=1,b=3"]) == ["b=2", "b=3"]
    for names in (["lenet", "lenet,a=1"], ["a=1"], ["x,y", "y,x"]):
        assert without_common_fields(names) == names
