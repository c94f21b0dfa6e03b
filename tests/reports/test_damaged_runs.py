"""Runs with a damaged file: every program that reads them names the file and what is wrong with it in one sentence."""

import json
import shutil

import numpy as np
import pytest

from dctps_jax.pruning import load_masks, save_masks
from dctps_jax.reports import curves, masks, report
from tests.commands import assert_one_sentence, call
from tests.fake_runs import MASKS, make_run


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A finished run of three epochs, the second the best on validation."""
    folder = make_run(tmp_path_factory.mktemp("sound") / "run")
    config, row = (json.loads((folder / name).read_text()) for name in ("config.json", "metrics.jsonl"))
    (folder / "config.json").write_text(json.dumps(config | {"num_epochs": 3}))
    rows = [row | {"epoch": n, "step": 9 * n, "val_accuracy": (0.25, 0.5, 0.375)[n - 1]} for n in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(results | {"best_epoch": 2, "best_val_accuracy": 0.5}))
    return folder


@pytest.fixture
def run(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "run")


def check_report_and_curves(run, name, sentence):
    """Both programs name the file and what is wrong with it, and write nothing."""
    for program, main in (("report", report.main), ("curves", curves.main)):
        output = run.parent / f"output_{program}"
        assert_one_sentence(call(main, run, "--output", output), program, str(run / name), sentence)
        assert not output.exists()


def test_the_sound_run_has_a_report(run):
    done = call(report.main, run, "--output", run.parent / "out")
    assert done.code == 0 and done.err == ""


def without(values, field):
    return {name: value for name, value in values.items() if name != field}


ROWS = {
    "no UTF-8": (lambda lines: [lines[0], b"\xff\xfe" + lines[1], lines[2]], "line 2"),
    "text for a number": (lambda lines: changed(lines, 1, val_accuracy="0.5"), "line 2 (val_accuracy is '0.5'"),
    "renamed key": (lambda lines: [line.replace(b"val_loss", b"val_lost") for line in lines], "no field val_loss"),
    "not a number": (lambda lines: changed(lines, 0, train_loss=float("nan")), "line 1 (train_loss is nan"),
    "infinite": (lambda lines: changed(lines, 2, val_loss=float("inf")), "line 3 (val_loss is inf"),
    "out of range": (lambda lines: changed(lines, 1, val_accuracy=4.5), "val_accuracy is 4.5"),
    "negative": (lambda lines: changed(lines, 1, images_per_second=-1.0), "images_per_second is -1.0"),
    "truth": (lambda lines: changed(lines, 0, epoch=True), "epoch is True"),
    "half an epoch": (lambda lines: changed(lines, 0, epoch=1.5), "epoch is 1.5"),
    "400 digits": (lambda lines: changed(lines, 0, train_loss=10**400), "train_loss is 1000"),
    "doubled row": (
        lambda lines: [lines[0], lines[1], lines[1], lines[2]],
        "line 3 (epoch is 2, but the epochs before",
    ),
    "lost row": (lambda lines: [lines[0], lines[2]], "line 2 (epoch is 3"),
    "first row lost": (lambda lines: lines[1:], "line 1 (epoch is 2"),
    "altered step": (lambda lines: changed(lines, 1, step=19), "step is 19, but each epoch has 9 steps"),
    "no object": (lambda lines: [b"[1]", *lines], "line 1 (it is no JSON object"),
    "empty line": (lambda lines: [lines[0], b"", *lines[1:]], "line 2"),
    "deep": (lambda lines: [b"[" * 100_000, *lines], "nested too deeply"),
    "cut in the middle": (lambda lines: [lines[0][:20], *lines[1:]], "line 1"),
    "last line that is whole": (lambda lines: [*lines[:2], lines[2].replace(b"{", b"(")], "line 3"),
}


def changed(lines, number, **fields):
    lines = list(lines)
    lines[number] = json.dumps(json.loads(lines[number]) | fields).encode()
    return lines


@pytest.mark.parametrize("damage", ROWS)
def test_damaged_rows(run, damage):
    change, sentence = ROWS[damage]
    file = run / "metrics.jsonl"
    file.write_bytes(b"\n".join(change(file.read_bytes().splitlines())) + b"\n")
    check_report_and_curves(run, "metrics.jsonl is damaged", sentence)


def test_rows_that_are_cut_are_missed_in_a_finished_run(run):
    (run / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes()[:-20])
    check_report_and_curves(run, "", "is finished, but only 2 of 3 epochs are recorded")
    (run / "results.json").unlink()  # one that goes on was stopped by a kill
    assert call(curves.main, run, "--output", run.parent / "curves").code == 0


def test_more_rows_than_epochs(run):
    rows = (run / "metrics.jsonl").read_bytes()
    more = changed(rows.splitlines(), 2, epoch=4, step=36)[2]
    (run / "metrics.jsonl").write_bytes(rows + more + b"\n")
    check_report_and_curves(run, "", "num_epochs is 3 in the config, and 4 epochs are recorded")


@pytest.mark.parametrize("name", ["metrics.jsonl", "results.json", "config.json"])
def test_folders_in_the_place_of_files(run, name):
    (run / name).unlink()
    (run / name).mkdir()
    check_report_and_curves(run, name, "is a directory")


RESULTS = {
    **{
        f"no {field}": (lambda values, field=field: without(values, field), f"there is no field {field}")
        for field in (
            "test_accuracy_final", "test_accuracy_best", "best_val_accuracy", "best_epoch", "density", "density_asked",
            "trainable_parameters",
        )
    },
    "text": (lambda values: values | {"test_accuracy_final": "0.4"}, "test_accuracy_final is '0.4'"),
    "percent": (lambda values: values | {"test_accuracy_final": 40.0}, "test_accuracy_final is 40.0"),
    "not a number": (lambda values: values | {"test_accuracy_best": float("nan")}, "test_accuracy_best is nan"),
    "truth": (lambda values: values | {"density": True}, "density is True"),
    "none": (lambda values: values | {"density": None}, "density is None"),
    "half a weight": (lambda values: values | {"trainable_parameters": 1.5}, "trainable_parameters is 1.5"),
    "no kinds": (lambda values: values | {"storage_bytes": {}}, "no field storage_bytes.parameters.this"),
    "text for an account": (lambda values: values | {"flops": "many"}, "no field flops.inference_of_an_image.dense"),
    "text in an account": (
        lambda values: json.loads(json.dumps(values).replace("2500000", '"2.5 M"')),
        "flops.inference_of_an_image.dense is",
    ),
    "text for seeds": (lambda values: values | {"seeds": "0, 1"}, "seeds is '0, 1'"),
    "a list": (lambda values: [values], "it is no JSON object"),
    "nothing": (lambda values: None, "it is no JSON object"),
}  # fmt: skip


def edit(file, change):
    """Replace the JSON value of a file by what ``change`` makes of it."""
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


@pytest.mark.parametrize("damage", RESULTS)
def test_damaged_results(run, damage):
    change, sentence = RESULTS[damage]
    edit(run / "results.json", change)
    check_report_and_curves(run, "results.json is not what a finished run leaves", sentence)


CONFIGS = {
    "foreign": (lambda values: {"name": "something else"}, "there is no field model.name"),
    "renamed key": (lambda values: without(values, "pruning") | {"prunning": values["pruning"]}, "pruning.density"),
    "text": (lambda values: values | {"seed": "0"}, "seed is '0'"),
    "unknown offset": (
        lambda values: values | {"model": {"name": "lenet", "offset": "fourier"}},
        "model.offset is 'fourier'",
    ),
    "text for a density": (
        lambda values: values | {"pruning": values["pruning"] | {"density": "0.01"}},
        "pruning.density is '0.01'",
    ),
    "text for a group": (lambda values: values | {"pruning": "epl"}, "there is no field pruning.density"),
    "a list": (lambda values: [], "it is no JSON object"),
}


@pytest.mark.parametrize("damage", CONFIGS)
def test_foreign_configs(run, damage):
    change, sentence = CONFIGS[damage]
    edit(run / "config.json", change)
    check_report_and_curves(run, "config.json is no config of a run", sentence)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"PK\x03\x04", "{}".encode("utf-16")])
def test_files_that_are_no_json(run, content):
    for name in ("results.json", "config.json"):
        before = (run / name).read_bytes()
        (run / name).write_bytes(content)
        check_report_and_curves(run, f"{name} cannot be read as JSON", "restore it")
        (run / name).write_bytes(before)


CONTRADICTIONS = {
    "seed": ("config.json", {"seed": 7}, "seed is 0 in the results and 7 in the config"),
    "density": ("results.json", {"density_asked": 0.02}, "density_asked is 0.02 in the results and 0.01 in the config"),
    "best epoch": ("results.json", {"best_epoch": 3}, "0.5 after epoch 3 in the results, and 0.5 after epoch 2"),
    "best accuracy": ("results.json", {"best_val_accuracy": 0.75}, "0.75 after epoch 2 in the results, and 0.5"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_files_of_different_runs(run, name):
    file, fields, sentence = CONTRADICTIONS[name]
    (run / file).write_text(json.dumps(json.loads((run / file).read_text()) | fields))
    check_report_and_curves(run, "", sentence)


def test_damaged_files_of_all_runs(sound, tmp_path):
    assert call(report.main, sound, "--output", tmp_path).code == 0
    whole = json.loads((tmp_path / "runs.jsonl").read_text().splitlines()[1])
    damaged = tmp_path / "damaged.jsonl"
    row = whole["rows"][0]
    for number, (values, sentence) in enumerate(
        (
            (whole | {"config": whole["config"] | {"pruning.density": "x"}}, "pruning.density is 'x'"),
            (whole | {"config": []}, "it is no JSON object"),
            (whole | {"results": {}}, "there is no field test_accuracy_best"),
            (whole | {"results": whole["results"] | {"density": "0.1"}}, "density is '0.1'"),
            (whole | {"results": whole["results"] | {"best_epoch": 1}}, "the best validation accuracy"),
            (whole | {"rows": [row, row]}, "epoch is 1"),
            (whole | {"rows": {"epoch": 1}}, "it must have the fields"),
            (whole | {"rows": [1]}, "it is no JSON object"),
            (whole | {"name": 7}, "it must have the fields"),
            (without(whole, "rows"), "it must have the fields"),
            (whole | {"more": 1}, "it must have the fields"),
            ([whole], "it is no JSON object"),
        )
    ):
        damaged.write_text(f"{json.dumps(whole)}\n{json.dumps(values)}\n")
        done = call(report.main, damaged, "--output", tmp_path / f"out{number}")
        assert_one_sentence(done, "report", f"{damaged} is no file of runs: line 2: ", sentence)
    damaged.write_bytes(b"\xff")
    assert_one_sentence(call(report.main, damaged), "report", f"{damaged} is no file of runs: line 1: ")


def other(**layers):
    return lambda file: save_masks(file, MASKS | layers)


MASK_FILES = {
    "cut": (lambda file: file.write_bytes(file.read_bytes()[:-30]), "is no .npz file, or a truncated one"),
    "empty": (lambda file: file.write_bytes(b""), "is no .npz file, or a truncated one"),
    "text": (lambda file: file.write_text("masks"), "is no .npz file, or a truncated one"),
    "pickle": (lambda file: np.savez(file, fc=np.array([{}], object)), "cannot be read as .npz"),
    "weights": (
        lambda file: np.savez(file, fc=np.ones((4, 2), np.float32)), "float32 of shape (4, 2), which is no mask"
    ),
    "no weights": (other(fc=np.zeros((0, 2), bool)), "holds fc as bool of shape (0, 2), which is no mask"),
    "other density": (other(fc=np.ones((4, 2), bool)), "holds other masks than"),
    "other layer": (other(conv2=np.ones((4, 2), bool)), "holds other masks than"),
    "lost layer": (lambda file: save_masks(file, {"fc": MASKS["fc"]}), "holds other masks than"),
    "folder": (lambda file: (file.unlink(), file.mkdir()), "does not exist"),
    "nothing": (lambda file: file.unlink(), "does not exist"),
    "results": (
        lambda file: file.with_name("results.json").write_text("{}"), "results.json is not what a finished run"
    ),
    "results that are a list": (
        lambda file: file.with_name("results.json").write_text('{"layer_densities": [1]}'), "holds other masks",
    ),
    "results that are no text": (
        lambda file: file.with_name("results.json").write_bytes(b"\xff"), "results.json cannot be read"
    ),
    "config": (
        lambda file: (file.with_name("results.json").unlink(), file.with_name("config.json").write_text("[]")),
        "config.json is no config of a run",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", MASK_FILES)
def test_damaged_and_foreign_masks(run, damage):
    act, sentence = MASK_FILES[damage]
    act(run / "masks.npz")
    done = call(masks.main, run, "--output", run.parent / "figure")
    assert_one_sentence(done, "masks", str(run), sentence)
    assert not list(run.parent.glob("figure*"))


def test_flipped_bytes_of_masks(run):
    """They are noticed, or change nothing."""
    content, random = (run / "masks.npz").read_bytes(), np.random.default_rng(0)
    for place in random.integers(0, len(content), 150):
        damaged = bytearray(content)
        damaged[place] ^= 1 << random.integers(8)
        (run / "masks.npz").write_bytes(damaged)
        try:
            found = masks.load_runs([run])["run"]
        except ValueError as error:
            assert str(run) in str(error) and "\n" not in str(error)
        else:
            assert {path: mask.tolist() for path, mask in found.items()} == {
                path: mask.tolist() for path, mask in MASKS.items()
            }
    (run / "masks.npz").write_bytes(content)
    assert load_masks(run / "masks.npz").keys() == MASKS.keys()


def test_what_a_run_set_aside_is_no_run(tmp_path):
    make_run(tmp_path / "runs" / "a")
    (tmp_path / "runs" / "a" / "damaged").mkdir()
    (tmp_path / "runs" / "a" / "damaged" / "metrics.jsonl").write_text("{}\n")
    done = call(report.main, tmp_path / "runs", "--output", tmp_path)
    assert (done.code, done.err) == (0, "") and "written" in done.out
