"""Whole runs inside this process: stopped anywhere they end the same, and what must not happen does not."""

import json
import math
import re
import signal

import numpy as np
import pytest

from dctps_jax.errors import DiskFull, UserError
from dctps_jax.export import describe_exported, export_run
from dctps_jax.pruning import load_masks
from dctps_jax.reports import curves
from dctps_jax.reports.masks import load_runs
from dctps_jax.reports.records import read_records
from dctps_jax.reports.report import summary
from dctps_jax.runs.checkpoint import Checkpoints
from dctps_jax.runs.summary import last_line
from dctps_jax.training import from_config, loop
from dctps_jax.training.signals import NonFiniteLoss, Stopped
from tests.commands import call
from tests.killed_runs import Kill, copy_unfinished, flip_content, kill_at, run_through_kills, run_until_killed
from tests.small_runs import STEPS_PER_EPOCH, arrays, assert_same_end, results, rows, small_run, steps

pytestmark = pytest.mark.usefixtures("small")


def test_killed_at_any_write_it_ends_the_same(tmp_path, plain):
    # After the best of epoch 1 is saved; before its last checkpoint; after it, before its row; before the save of step
    # 8; before the last checkpoint; after it, before the row; before the results; after them.
    run_through_kills(tmp_path, [6, 3, 4, 3, 3, 2, 1, 2], checkpoint_every_steps=2)
    assert_same_end(tmp_path, plain)


def test_full_disks_on_its_way_lose_nothing(small_disk, plain):
    workdir, saved = small_disk.folder / "run", []
    for kilobytes in (90, 150, 240):
        small_disk.resize(kilobytes)
        with pytest.raises(DiskFull, match=r"checkpoints/(latest|best) has no room for the checkpoint of step \d+, "):
            small_run(workdir, checkpoint_every_steps=2)
        assert max(steps(workdir)) > max(saved, default=0)
        saved = steps(workdir)
    small_disk.resize(4000)
    small_run(workdir, checkpoint_every_steps=2)
    assert_same_end(workdir, plain)


EVERY_DISPATCH = {"steps_per_dispatch": 3, "optimizer__name": "sgd"}


def test_resumed_in_the_middle_of_an_epoch_of_several_steps_a_dispatch(tmp_path):
    options = EVERY_DISPATCH | {"checkpoint_every_steps": 1}
    small_run(tmp_path / "plain", **options)
    run_through_kills(tmp_path / "killed", [2, 2], **options)  # after the saves of steps 3 and 4
    assert_same_end(tmp_path / "killed", tmp_path / "plain")


def test_a_run_with_another_offset_is_resumed(tmp_path):
    options = {"model__offset": "hadamard", "checkpoint_every_steps": 2}
    small_run(tmp_path / "plain", **options)
    run_through_kills(tmp_path / "killed", [3], **options)
    assert_same_end(tmp_path / "killed", tmp_path / "plain")


def test_a_run_whose_config_has_the_old_names_of_methods_goes_on(tmp_path, plain):
    options = {"checkpoint_every_steps": 2, "execution__layer_methods": (("fcs.*", "autodiff"),)}
    run_until_killed(tmp_path, 3, execution__method="autodiff", **options)
    path = tmp_path / "config.json"
    assert path.read_text().count('"autodiff"') == 2
    path.write_text(path.read_text().replace('"autodiff"', '"plain"'))
    config = path.read_text()
    small_run(tmp_path, execution__method="autodiff", **options)
    assert_same_end(tmp_path, plain)  # "auto" is "autodiff" for layers as small as these
    small_run(tmp_path, checkpoint_every_steps=2)
    assert_same_end(tmp_path, plain)
    assert path.read_text() == config


def test_number_of_saves_is_what_was_asked_for(tmp_path, monkeypatch):
    saved, save = [], Checkpoints.save

    def record(self, kind, step, *content):
        if kind == "latest":
            saved.append(step)
        save(self, kind, step, *content)

    monkeypatch.setattr(Checkpoints, "save", record)
    small_run(tmp_path, checkpoint_every_steps=3, **EVERY_DISPATCH)
    # An epoch is dispatched as 3 + 1 + 1: the first boundary at or after each multiple of 3, and the ends of the
    # epochs.
    assert saved == [3, 5, 8, 9, 10]


@pytest.mark.parametrize("step", [3, STEPS_PER_EPOCH])
def test_stopped_by_a_signal_it_saves_and_goes_on(tmp_path, plain, monkeypatch, capsys, step):
    dispatches = loop.run_epoch

    def with_a_signal(*args, **kwargs):
        for item in dispatches(*args, **kwargs):
            if item[0] == step:
                signal.raise_signal(signal.SIGTERM)
            yield item

    with monkeypatch.context() as patch, pytest.raises(Stopped) as stopped:
        patch.setattr(loop, "run_epoch", with_a_signal)
        small_run(tmp_path, checkpoint_every_steps=2)
    assert stopped.value.exit_code == 143 and f"saved at step {step}" in str(stopped.value)
    assert steps(tmp_path)[-1] == step and rows(tmp_path) == []
    small_run(tmp_path, checkpoint_every_steps=2)
    assert_same_end(tmp_path, plain)
    # An epoch without a step left has no speed.
    line = re.search("epoch 1/2 .*", capsys.readouterr().out)
    assert line is not None and ("images/s" in line[0]) == (step < STEPS_PER_EPOCH)
    log_of_run = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert (json.loads(log_of_run[0])["images_per_second"] is None) == (step == STEPS_PER_EPOCH)
    assert summary(read_records(tmp_path))[0]["images_per_second"] > 0


def test_a_damaged_checkpoint_is_passed_over(tmp_path, plain, caplog):
    workdir = copy_unfinished(plain, tmp_path / "run")
    flip_content(workdir, steps(workdir)[-1])
    small_run(workdir, checkpoint_every_steps=2)
    assert caplog.text.count("is damaged and passed over") == 1
    assert_same_end(workdir, plain)


def test_finished_run_reports_and_does_nothing(plain, monkeypatch, capsys):
    before = {path: path.stat().st_mtime_ns for path in plain.rglob("*") if path.name != ".lock"}
    monkeypatch.setattr(loop, "compile_programs", None)
    found = small_run(plain, checkpoint_every_steps=2)
    assert found == json.loads((plain / "results.json").read_text())
    assert "is finished. test accuracy" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in plain.rglob("*") if path.name != ".lock"}


def test_results_and_rows_hold_what_is_promised(plain):
    found = results(plain)
    assert {
        "best_val_accuracy",
        "test_accuracy_best",
        "test_accuracy_final",
        "density",
        "layer_densities",
        "trainable_parameters",
        "seed",
    } <= found.keys()
    assert [(row["epoch"], row["step"]) for row in rows(plain)] == [(1, STEPS_PER_EPOCH), (2, 2 * STEPS_PER_EPOCH)]
    assert found["best_val_accuracy"] == max(row["val_accuracy"] for row in rows(plain))
    masks = load_masks(plain / "masks.npz")
    kept, size = (int(sum(map(measure, masks.values()))) for measure in (np.sum, np.size))
    supports = {name: array for name, array in arrays(plain).items() if name.startswith("state/supports")}
    assert sum(support.size for support in supports.values()) == kept
    assert found["density"] == kept / size == pytest.approx(0.05, abs=1e-4)
    assert found["trainable_parameters"] == kept + 5  # and an α a layer
    assert found["storage_bytes"]["parameters"] == {"this": 4 * (kept + 5), "dense": 4 * size}
    written = json.loads((plain / "results.json").read_text())["checkpoint_file_bytes"]
    assert found["storage_bytes"]["parameters"]["this"] < written < found["storage_bytes"]["checkpoint"]["dense"]


def assert_only_trained_weights_are_stored(workdir, arrays_per_layer):
    found, masks = arrays(workdir), load_masks(workdir / "masks.npz")
    seen = 0
    for name, support in found.items():
        if name.startswith("state/supports/"):
            layer = name.removeprefix("state/supports/").removesuffix("/support")
            np.testing.assert_array_equal(support, np.flatnonzero(masks[layer.replace("/", ".")]))
            for other in found:
                if other.endswith(f"{layer}/kernel"):
                    seen += 1
                    assert found[other].dtype == np.float32 and found[other].shape == support.shape
                    assert found[other].any(), other
    assert seen == 5 * arrays_per_layer


@pytest.mark.parametrize("form", ["masked", "compact"])
def test_checkpoints_hold_the_trained_weights_and_their_moments_only(tmp_path, plain, form):
    assert_only_trained_weights_are_stored(plain, 3)  # S and Adam's two moments
    options = {"optimizer__name": "sgd", "model__offset": None, "model__dtype": "bfloat16"}
    small_run(tmp_path, execution__form=form, **options)
    assert_only_trained_weights_are_stored(tmp_path, 2)
    assert all(math.isfinite(row["train_loss"]) for row in rows(tmp_path))


def test_the_plan_is_printed_on_request(tmp_path, capsys):
    small_run(tmp_path, num_epochs=1, execution__explain=True, execution__layer_methods=(("fcs.0", "autodiff"),))
    printed = capsys.readouterr().out
    assert re.search(
        r"^layer +kernel +stride +inputs +nnz +method"
        r" +autodiff +on_support +on_support_rows +per_weight +per_weight_rows +transform +transform_rows$",
        printed,
        re.MULTILINE,
    )
    assert re.search(r"^fcs\.0 .* autodiff ", printed, re.MULTILINE)


@pytest.mark.parametrize("batch_size", [32, 176])
def test_loss_that_is_not_finite_ends_the_run(tmp_path, batch_size):
    # With 176 of 180 images a batch the first epoch is one step: its loss is finite, what it leaves is not.
    options = {"optimizer__name": "sgd", "optimizer__learning_rate": 1e38, "batch_size": batch_size}
    for _ in range(2):  # the second time with what the first one left
        with pytest.raises(NonFiniteLoss, match="not finite at step 1;") as ended:
            small_run(tmp_path, checkpoint_every_steps=1, **options)
        assert ended.value.exit_code == 3
        assert not (tmp_path / "results.json").exists()
        rows(tmp_path)  # valid JSON
        for step in steps(tmp_path):
            for name, array in arrays(tmp_path, step=step).items():
                assert array.dtype != np.float32 or np.isfinite(array).all(), f"step {step}: {name} is not good"


def test_last_update_that_is_not_finite_is_no_success(tmp_path):
    options = {"optimizer__name": "sgd", "optimizer__learning_rate": 1e38, "batch_size": 176, "num_epochs": 1}
    with pytest.raises(NonFiniteLoss):
        small_run(tmp_path, **options)


def test_several_seeds_and_their_mean(tmp_path, plain, capsys):
    found = small_run(str(tmp_path), num_seeds=2, checkpoint_every_steps=2)  # a text names a directory, too
    alone = [results(tmp_path / f"seed_{seed}") for seed in (0, 1)]
    assert found["seeds"] == [0, 1] and [run["seed"] for run in alone] == [0, 1]
    for name in ("best_val_accuracy", "test_accuracy_best", "test_accuracy_final"):
        values = [run[name] for run in alone]
        assert found[name] == pytest.approx(np.mean(values))
        assert found[f"{name}_std"] == pytest.approx(np.std(values, ddof=1))
    printed = capsys.readouterr().out.splitlines()[-1]
    assert " ± " in printed and printed == last_line(found)
    assert found == json.loads((tmp_path / "results.json").read_text())
    # A seed among several is the run of that seed alone, and another seed is another run in everything.
    assert_same_end(tmp_path / "seed_0", plain)
    first, second = arrays(plain), arrays(tmp_path / "seed_1")
    assert not np.array_equal(first["state/supports/convs/6/support"], second["state/supports/convs/6/support"])
    assert rows(plain) != rows(tmp_path / "seed_1")
    # The programs that take a run take its seeds.
    best = max(alone, key=lambda run: run["best_val_accuracy"])["seed"]
    exported = export_run(str(tmp_path), str(tmp_path / "model.safetensors"))
    assert exported == tmp_path / f"seed_{best}" and describe_exported(tmp_path / "model.safetensors").fit == "squash"
    done = call(curves.main, tmp_path, "--output", tmp_path / "curves.pdf")
    assert done.code == 0 and done.out == f"written: {tmp_path / 'curves.pdf'}\n"
    assert list(load_runs([tmp_path])) == ["seed_0", "seed_1"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 5000),
        ("data__train_fraction", 0.9999),
        ("pruning__dense_layers", ("nothing",)),
        ("data__image_size", 64),
    ],
)
def test_mistake_found_after_the_data_is_read_writes_nothing(tmp_path, field, value):
    with pytest.raises(UserError):
        small_run(tmp_path / "run", **{field: value})
    assert not (tmp_path / "run" / "config.json").exists()  # else the corrected command is refused


def test_run_moves_to_a_platform_with_another_number_of_steps_a_dispatch(tmp_path, monkeypatch):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Kill):
        kill_at(patch, 2)
        small_run(tmp_path, checkpoint_every_steps=2)
    assert steps(tmp_path) == [2]
    monkeypatch.setattr(from_config, "default_steps_per_dispatch", lambda *_: 5)
    small_run(tmp_path, checkpoint_every_steps=2)
    assert [row["step"] for row in rows(tmp_path)] == [5, 10]
