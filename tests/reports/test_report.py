"""Tables, the accuracy figure and the file of all runs, from directories that stand for runs."""

import csv
import itertools
import json
import re

import pytest

from dctps_jax import UserError
from dctps_jax.reports.accuracy import draw_accuracy
from dctps_jax.reports.records import read_records
from dctps_jax.reports.report import markdown, summary, write_report
from dctps_jax.reports.settings import method_name
from tests.fake_runs import make_run


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs"
    for seed, accuracy in enumerate((0.5, 0.6, 0.7)):
        make_run(folder / f"dct_{seed}", seed=seed, accuracy=accuracy)
    make_run(folder / "sparse", offset=None, accuracy=0.2)
    make_run(folder / "dense", density=1.0, offset=None, accuracy=0.8)
    make_run(folder / "rigl", moves="rigl", density=0.1)
    make_run(folder / "going_on", method="snip", finished=False)
    return folder


def test_a_line_a_setting_with_mean_and_deviation(runs):
    lines = {(line["method"], line["offset"]): line for line in summary(read_records(runs))}
    assert set(lines) == {("epl", "dct"), ("epl", "none"), ("dense", "none"), ("epl + rigl", "dct")}
    line = lines["epl", "dct"]
    assert line["seeds"] == 3 and line["density_asked"] == 0.01 and line["density_kept"] == pytest.approx(0.0101)
    assert line["test_accuracy_best"] == pytest.approx(0.6) and line["test_accuracy_best_std"] == pytest.approx(0.1)
    assert line["test_accuracy_final"] == pytest.approx(0.5)
    assert line["state_bytes"] == 3000 and line["inference_of_an_image_flops_sparse"] == 21_000
    assert line["images_per_second"] == 1001.0
    assert lines["epl", "none"]["test_accuracy_best_std"] == 0


def test_another_offset_has_a_label_in_the_figure(runs, tmp_path):
    make_run(runs / "hadamard", offset="hadamard")
    write_report(runs, tmp_path / "out")
    labels = labels_in(tmp_path / "out" / "accuracy.svg")
    assert labels >= {"DCT + sparse, epl", "Hadamard + sparse, epl", "sparse, epl", "DCT + sparse, epl + rigl", "dense"}


def test_the_files(runs, tmp_path):
    output = tmp_path / "reports" / "out"
    files = write_report(runs, output)
    assert sorted(file.name for file in files) == [
        "accuracy.png", "accuracy.svg", "curves.png", "curves.svg", "report.csv", "report.md", "runs.jsonl",
    ]  # fmt: skip
    assert all(file.exists() for file in files)
    text = (output / "report.md").read_text()
    assert (
        "| epl | dct | 1 % | 1.01 % | 3 | 60.00 ± 10.00 % | 50.00 ± 10.00 % | 615 | 3 kB | 12.3 kB | 2.5 M | 21 k |"
        in text
    )
    assert "Not finished, and left out: going_on." in text
    with (output / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and rows[-1]["method"] == "epl + rigl"

    # The one file stands for the directories.
    again = tmp_path / "again"
    write_report(output / "runs.jsonl", again)
    for file in files:
        assert (again / file.name).read_bytes() == file.read_bytes()


def test_a_seed_counts_once(runs, tmp_path):
    make_run(runs / "dct_0_copied", seed=0, accuracy=0.5)
    make_run(runs / "a_dct_0_that_goes_on", seed=0, finished=False)
    write_report(runs, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| 3 | 60.00 ± 10.00 % |" in text and "once more, and left out: dct_0_copied, a_dct_0_that_goes_on." in text


def test_curves_are_of_finished_runs(tmp_path):
    (make_run(tmp_path / "runs" / "a") / "metrics.jsonl").unlink()
    make_run(tmp_path / "runs" / "b", seed=1, finished=False)
    files = write_report(tmp_path / "runs", tmp_path / "out")
    assert "curves.png" not in [file.name for file in files]


def test_other_fields_that_differ_are_columns(runs):
    make_run(runs / "cropped", augment=True)
    lines = summary(read_records(runs))
    assert {line["fields"]["data.augment"] for line in lines} == {None, True}


def set_fields(folder, **fields):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    for name, value in fields.items():
        section, _, last = name.rpartition("__")
        (config[section] if section else config)[last] = value
    file.write_text(json.dumps(config))


def test_top_level_fields_that_differ_show_everywhere(tmp_path):
    for batch_size, density in itertools.product((32, 128), (0.2, 0.1, 0.05)):
        run = make_run(tmp_path / "runs" / f"{batch_size}_{density}", density=density)
        set_fields(run, batch_size=batch_size)
    write_report(tmp_path / "runs", tmp_path)
    head, _, *rows = (line.split(" | ") for line in (tmp_path / "report.md").read_text().splitlines()[:8])
    assert [row[head.index("batch_size")] for row in rows] == ["128", "32"] * 3
    with (tmp_path / "report.csv").open() as file:
        assert [row["batch_size"] for row in csv.DictReader(file)] == ["128", "32"] * 3
    assert labels_in(tmp_path / "accuracy.svg") >= {
        f"DCT + sparse, batch_size={batch_size}" for batch_size in (32, 128)
    }
    assert labels_in(tmp_path / "curves.svg") >= {f"epl, batch_size={batch_size}" for batch_size in (32, 128)}


def test_fields_without_effect_neither_show_nor_separate(tmp_path):
    moving = [make_run(tmp_path / "runs" / f"rigl_{every}", moves="rigl", density=0.1) for every in (10, 100)]
    static = [make_run(tmp_path / "runs" / f"epl_{every}", seed=every) for every in (10, 100)]
    dense = [make_run(tmp_path / "runs" / f"dense_{method}", density=1.0, method=method) for method in ("epl", "snip")]
    for run, every in zip(moving + static, (10, 100) * 2, strict=True):
        set_fields(run, sparse_training__update_every=every)
    write_report(tmp_path / "runs", tmp_path)
    head, _, *rows = (line.split(" | ") for line in (tmp_path / "report.md").read_text().splitlines()[:6])
    every = head.index("sparse_training.update_every")
    assert [(row[0], row[every], row[head.index("seeds")]) for row in rows] == [
        ("| dense", "", "1"), ("| epl", "", "2"), ("| epl + rigl", "10", "1"), ("| epl + rigl", "100", "1"),
    ]  # fmt: skip
    assert f"left out: {dense[1].name}." in (tmp_path / "report.md").read_text()
    panels = {"epl", *(f"epl + rigl, sparse_training.update_every={every}" for every in (10, 100))}
    labels = labels_in(tmp_path / "curves.svg")
    assert labels >= panels | {"100 %, DCT + dense"} and "dense" not in labels  # it is in all panels


def test_runs_that_differ_in_many_fields_go_by_their_names(tmp_path):
    fields = [{"batch_size": 8}, {"batch_size": 9}, {"data__augment": True}, {"data__size": 9}, {"model__width": 3}]
    names = ["first", "second", "third", "fourth", "fifth"]
    for name, values in zip(names, fields, strict=True):
        set_fields(make_run(tmp_path / "runs" / name), **values)
    set_fields(make_run(tmp_path / "runs" / "second_again", seed=1), batch_size=9)
    write_report(tmp_path / "runs", tmp_path)
    names[1] = "second and 1 more"
    accuracy, curves = labels_in(tmp_path / "accuracy.svg"), labels_in(tmp_path / "curves.svg")
    assert accuracy >= {f"epl, {name}" for name in names}
    assert curves >= {f"{name}: 1 %, DCT + sparse, epl" for name in names}
    assert "=" not in "".join(accuracy | curves)
    assert "lenet on digits, mean ± deviation of 1–2 seeds" in curves
    head, _, *rows = (line.strip("| ").split(" | ") for line in (tmp_path / "report.md").read_text().splitlines()[:7])
    assert {row[0] for row in rows} == set(names)
    assert {"runs", "batch_size", "data.augment", "data.size", "model.width"} <= set(head)


def labels_in(svg):
    """The texts of a figure; a label of several lines is one text."""
    comments = re.findall(r"<!-- (.*?) -->", svg.read_text(), re.DOTALL)
    return {" ".join(text.split()) for text in comments}


def test_few_densities_are_dots_in_rows_and_many_are_lines(runs, tmp_path):
    make_run(runs / "erk", method="erk", offset=None)
    make_run(runs / "low", density=0.001)
    for method in ("snip", "synflow"):
        make_run(runs / method, method=method)
    write_report(runs, tmp_path)
    dots = labels_in(tmp_path / "accuracy.svg")
    assert dots >= {"10 % of the weights trained", "1 % of the weights trained", "synflow", "erk", "epl + rigl"}
    assert "lenet on digits, mean ± deviation of 1–3 seeds" in dots
    few = tmp_path / "few"
    for density in (0.1, 0.01, 0.001):
        make_run(few / f"run_{density}", density=density)
    write_report(few, few)
    lines = labels_in(few / "accuracy.svg")
    assert lines >= {"lenet on digits, epl", "DCT + sparse", "weights trained (%)"}
    assert "1 % of the weights trained" not in lines and "deviation" not in " ".join(lines)


@pytest.mark.parametrize("accuracies", [(1.0,), (1.0, 0.5), (1.0, 1.0, 0.995)])
def test_the_axis_of_accuracies_ends_at_100_percent(tmp_path, monkeypatch, accuracies):
    drawn = []
    monkeypatch.setattr("dctps_jax.reports.accuracy.save_figure", lambda figure, output: drawn.append(figure))
    for number in range(len(accuracies)):
        make_run(tmp_path / str(number), density=0.1 ** (1 + number))
    lines = summary(read_records(tmp_path))
    lines = [line | {"test_accuracy_final": value} for line, value in zip(lines, accuracies, strict=True)]
    draw_accuracy(lines, tmp_path / "accuracy", "title")
    (axes,) = drawn[0].axes
    is_over_density = axes.get_xscale() == "log"
    axis, limits = (axes.yaxis, axes.get_ylim()) if is_over_density else (axes.xaxis, axes.get_xlim())
    assert is_over_density == (len(accuracies) > 1)
    assert 100 < limits[1] < 103 and axis.get_label_text() == "test accuracy, last epoch (%)"
    assert max(tick for tick in axis.get_ticklocs() if tick <= limits[1]) <= 100


def test_only_several_seeds_have_error_bars(tmp_path):
    for seed in (0, 1):
        for density in (0.1, 0.01):
            make_run(tmp_path / "runs" / f"{seed}_{density}", seed=seed, density=density)
        write_report(tmp_path / "runs", tmp_path)
        assert ("LineCollection" in (tmp_path / "accuracy.svg").read_text()) == (seed == 1)


def test_a_long_legend_is_not_cut_off(tmp_path):
    folder = "a_rather_long_name_of_a_folder_" * 6
    for number in range(30):
        set_fields(make_run(tmp_path / "runs" / str(number)), pruning__dense_layers=[f"{folder}{number}"])
    write_report(tmp_path / "runs", tmp_path)
    for name in ("accuracy", "curves"):
        svg = (tmp_path / f"{name}.svg").read_text()
        width, height = map(float, re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', svg).groups())
        places = re.findall(r'<g transform="translate\(([-\d.]+) ([-\d.]+)\)', svg)
        assert places and all(0 <= float(x) <= width and 0 <= float(y) <= height for x, y in places)


def test_image_folders_are_told_apart_by_their_place(tmp_path):
    for name, accuracy in (("cats", 0.9), ("cars", 0.2)):
        make_run(tmp_path / "runs" / name, accuracy=accuracy)
        config = tmp_path / "runs" / name / "config.json"
        values = json.loads(config.read_text())
        values["data"] = {"name": "image_folder", "dir": f"/somewhere/{name}", "cache_dir": "/elsewhere"}
        config.write_text(json.dumps(values))
    write_report(tmp_path / "runs", tmp_path)
    assert len(summary(read_records(tmp_path / "runs"))) == len(summary(read_records(tmp_path / "runs.jsonl"))) == 2
    text = (tmp_path / "runs.jsonl").read_text()
    assert '"data.dir":"cats"' in text and "where" not in text


def test_the_directory_over_seeds_is_no_run(tmp_path):
    folder = make_run(tmp_path / "runs")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_seeds": 2}))
    for seed in (0, 1):
        make_run(folder / f"seed_{seed}", seed=seed)
    assert [record.name for record in read_records(folder)] == ["seed_0", "seed_1"]
    (line,) = summary(read_records(folder))
    assert line["seeds"] == 2


def test_what_is_no_directory_of_runs(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no runs"):
        read_records(tmp_path / "empty")
    with pytest.raises(UserError, match="does not exist"):
        read_records(tmp_path / "none")
    (tmp_path / "foreign.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(UserError, match=r"foreign\.jsonl is no file of runs: line 1: "):
        read_records(tmp_path / "foreign.jsonl")
    (tmp_path / "binary").write_bytes(b"\x89PNG\xff")
    with pytest.raises(UserError, match="binary is no file of runs"):
        read_records(tmp_path / "binary")
    for number, (name, text) in enumerate((("config", "[1, 2]"), ("config", '{"a": 1}'), ("results", "{}"))):
        folder = make_run(tmp_path / f"wrong{number}")
        (folder / f"{name}.json").write_text(text)
        with pytest.raises(UserError, match=rf"{name}\.json is no"):
            read_records(folder)
    make_run(tmp_path / "one" / "run", finished=False)
    with pytest.raises(UserError, match="holds no finished run"):
        write_report(tmp_path / "one", tmp_path)
    make_run(tmp_path / "two" / "run")
    with pytest.raises(UserError, match=r"foreign\.jsonl, which is, or lies below, a file"):
        write_report(tmp_path / "two", tmp_path / "foreign.jsonl")


def test_names_of_methods():
    def name(**fields):
        setting = {"pruning.density": 0.1, "pruning.method": "epl", "sparse_training.method": "static"}
        return method_name(tuple((setting | {key.replace("__", "."): value for key, value in fields.items()}).items()))

    assert (
        name() == "epl" and name(pruning__density=1) == "dense" and name(sparse_training__method="set") == "epl + set"
    )
    assert name(pruning__density=1, pruning__method="from_run") == "from_run"
    taken = {"pruning__method": "from_run", "pruning__run": "runs/first"}
    assert name(**taken) == "from_run first"
    assert name(**taken, pruning__rewind_epoch=0, sparse_training__method="set") == "from_run at epoch 0 + set"


def test_the_rounds_of_a_lottery_ticket_are_one_method(tmp_path):
    def lines():
        lines = summary(read_records(tmp_path))
        return [(line["method"], line["density_asked"], list(line["fields"])) for line in lines]

    make_run(tmp_path / "round0", density=1.0)
    for number, density in ((1, 0.5), (2, 0.25)):
        run = make_run(tmp_path / f"round{number}", density=density, method="from_run")
        set_fields(run, pruning__run=f"runs/round{number - 1}", pruning__rewind_epoch=0)
    rounds = [("dense", 1.0, []), ("from_run at epoch 0", 0.5, []), ("from_run at epoch 0", 0.25, [])]
    assert lines() == rounds
    run = make_run(tmp_path / "another", density=0.25, method="from_run")
    set_fields(run, pruning__run="runs/another", pruning__rewind_epoch=0)
    assert [fields for _, _, fields in lines()] == [["pruning.run"]] * 4


def test_masks_of_other_runs_are_told_apart_by_their_names(tmp_path):
    for folder in ("one/a", "one/b"):
        set_fields(make_run(tmp_path / folder, method="from_run"), pruning__run=f"runs/{folder}")
    lines = summary(read_records(tmp_path))
    assert [(line["method"], line["fields"]) for line in lines] == [("from_run a", {}), ("from_run b", {})]
    set_fields(make_run(tmp_path / "two/b", method="from_run"), pruning__run="runs/two/b")
    assert {line["fields"]["pruning.run"] for line in summary(read_records(tmp_path))} == {
        f"runs/{folder}" for folder in ("one/a", "one/b", "two/b")
    }


def test_empty_layers_are_told(runs, tmp_path):
    assert "empty layers" not in markdown(summary(read_records(runs)), [])
    file = runs / "dct_1" / "results.json"
    results = json.loads(file.read_text())
    file.write_text(json.dumps(results | {"layer_densities": {"conv": 0.0, "fc": 0.3}}))
    text = markdown(summary(read_records(runs)), [])
    assert "| kept | empty layers | seeds |" in text and "| 1.01 % | 1 of 2 | 3 |" in text
    assert "With an offset, the kernel of such a layer is α·D alone." in text and text.count(" of 2 |") == 1


def test_the_operations_of_rigl_have_its_dense_gradients(runs):
    lines = {line["method"]: line for line in summary(read_records(runs))}
    # In 3 of 400 steps, a third of the operations with whole kernels instead of a third of the sparse ones.
    assert lines["epl + rigl"]["training_step_flops_sparse"] == 21_000 + round(0.75 / 100 * (2_500_000 - 20_000) / 3)
    assert lines["epl + rigl"]["inference_of_an_image_flops_sparse"] == 21_000
    assert lines["epl"]["training_step_flops_sparse"] == 21_000

    file = runs / "rigl" / "results.json"
    results = json.loads(file.read_text())
    for steps, moves in ((60, 0), (400, 2), (404, 3)):  # before step 45, 300 and 303
        file.write_text(json.dumps(results | {"step": steps}))
        (line,) = (line for line in summary(read_records(runs)) if line["method"] == "epl + rigl")
        assert line["training_step_flops_sparse"] == 21_000 + round(moves / steps * (2_500_000 - 20_000) / 3)


@pytest.mark.parametrize(
    ("number", "text"), [(None, ""), (0, "0 B"), (999, "999 B"), (999.6, "1 kB"), (12_345, "12.3 kB"), (5e13, "50 TB")]
)
def test_numbers_with_prefixes(number, text, tmp_path):
    records = read_records(make_run(tmp_path / "run").parent)
    head, _, cells = markdown([line | {"state_bytes": number} for line in summary(records)], records).splitlines()[:3]
    assert cells.split(" | ")[head.split(" | ").index("parameters + optimiser")] == text
