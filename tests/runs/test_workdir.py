"""The directory of a run: one process, one config, whole files."""

import json
import os

import pytest
from ml_collections import ConfigDict

from dctps_jax.defaults import FIELDS
from dctps_jax.errors import UserError
from dctps_jax.runs.workdir import (
    FREE_FIELDS,
    check_same,
    claim,
    identity,
    read_json,
    read_results,
    record_config,
    write_json,
)
from tests.small_runs import small_config


def test_new_directory_gets_the_config(tmp_path):
    config = small_config(optimizer__milestones=(1, 2), model__offset=None)
    workdir = tmp_path / "deep" / "er"
    with claim(workdir, config):
        assert not (workdir / "config.json").exists()  # nothing binds it before the run has found nothing wrong
        record_config(workdir, config)
        stored = json.loads((workdir / "config.json").read_text())
    assert stored["batch_size"] == 32 and stored["optimizer"]["milestones"] == [1, 2]
    assert stored["model"]["offset"] is None
    with claim(workdir, config):  # tuples are lists in JSON; that is no difference
        pass


def test_other_config_is_refused_with_the_fields_that_differ(tmp_path):
    with claim(tmp_path, small_config()):
        record_config(tmp_path, small_config())
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(UserError) as caught, claim(tmp_path, small_config(seed=7, optimizer__learning_rate=0.5)):
        pass
    message = str(caught.value)
    assert "optimizer.learning_rate (0.001 there, 0.5 now)" in message and "seed (0 there, 7 now)" in message
    assert str(tmp_path) in message and "batch_size" not in message and "\n" not in message
    assert (tmp_path / "config.json").read_text() == before


def test_a_directory_of_other_runs_is_refused(tmp_path):
    for name in ("pruning.density=0.1", "seed_0"):
        (tmp_path / name).mkdir()
        record_config(tmp_path / name, small_config())
    message = r"of other runs \(pruning.density=0.1\); .*, choose another"
    with pytest.raises(UserError, match=message), claim(tmp_path, small_config()):
        pass
    (tmp_path / "pruning.density=0.1" / "config.json").rename(tmp_path / "elsewhere.json")
    with claim(tmp_path, small_config()):  # it has the seeds of a run that is just beginning
        pass


@pytest.mark.parametrize("name", ["runs.jsonl", "_CHECKPOINT_METADATA"])
def test_a_directory_of_another_program_is_refused(name, tmp_path):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"holds {name} but no config.json"), claim(tmp_path, small_config()):
        pass


def test_fields_that_appear_or_vanish_are_differences(tmp_path):
    old = ConfigDict({"old": 1, "both": 2})
    with claim(tmp_path, old):
        record_config(tmp_path, old)
    other = ConfigDict({"new": 3, "both": 2})
    message = r"new \('absent' there, 3 now\), old \(1 there, 'absent' now\)"
    with pytest.raises(UserError, match=message), claim(tmp_path, other):
        pass


def test_a_config_without_a_later_field_is_that_of_the_same_run(tmp_path):
    config = small_config()
    older = json.loads(config.to_json())
    del older["optimizer"]["schedule"]
    assert identity(older) == identity(json.loads(config.to_json()))
    write_json(tmp_path / "config.json", older)
    with claim(tmp_path, config):
        pass
    config.optimizer.schedule = "another"
    assert identity(older) != identity(json.loads(config.to_json()))
    message = r"another config: optimizer\.schedule \('milestones' there, 'another' now\)"
    with pytest.raises(UserError, match=message), claim(tmp_path, config):
        pass


def test_where_files_lie_may_change(tmp_path):
    with claim(tmp_path, small_config()):
        record_config(tmp_path, small_config())
    moved = small_config(
        data__dir="/elsewhere", data__cache_dir="/c", data__download=False, data__max_pixels=9, log_every_steps=7
    )
    with claim(tmp_path, moved):
        pass
    known = {"data.dir", "data.cache_dir", "data.max_pixels", "data.download", "data.streaming", "data.processes"}
    known |= {"distributed.shards", "keep_epochs", "log_every_steps", "tensorboard", "wandb", "trackio", "multi_host"}
    known |= {f"distributed.{name}" for name in ("coordinator", "num_processes", "process_id")}
    # These change them by rounding only.
    known |= {"parallel_seeds"} | {
        f"execution.{name}"
        for name in ("form", "method", "layer_methods", "explain", "min_loop", "remat", "keep_compiled", "keep_memory")
    }
    assert set(FREE_FIELDS) == known  # a new one has to be one that does not change the numbers


def test_second_claim_is_refused_until_the_first_ends(tmp_path):
    with claim(tmp_path, small_config()):
        with pytest.raises(UserError, match="is in use by another run"), claim(tmp_path, small_config()):
            pass
        with pytest.raises(UserError, match="is in use by another run"), claim(tmp_path, small_config(seed=1)):
            pass
    with claim(tmp_path, small_config()):
        pass


def test_an_error_inside_releases_the_claim(tmp_path):
    for error in (UserError, KeyboardInterrupt):
        with pytest.raises(error), claim(tmp_path, small_config()):
            raise error
    with claim(tmp_path, small_config()):
        pass


def test_results_without_a_config_are_refused(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds results.json but no config\.json"), claim(tmp_path, small_config()):
        pass
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("text", ["", "{", "\x00\x01"])
def test_damaged_config_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json cannot be read as JSON"), claim(tmp_path, small_config()):
        pass
    assert (tmp_path / "config.json").read_text() == text


def test_config_that_is_no_config_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json is no config of a run"), claim(tmp_path, small_config()):
        pass
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(UserError, match=r"results\.json is not what a finished run leaves"):
        read_results(tmp_path)


def test_unusable_directories(tmp_path):
    (tmp_path / "file").write_text("x")
    for workdir in (tmp_path / "file", tmp_path / "file" / "below"):
        with (
            pytest.raises(UserError, match=f"--workdir {workdir} is, or lies below, a file"),
            claim(workdir, small_config()),
        ):
            pass


@pytest.mark.parametrize(
    ("name", "message"),
    [("\udcff", r"\\udcff is no UTF-8"), ("x" * 256, "is too long with"), ("x" * 250 + "/", "is too long with")],
)
def test_names_that_a_checkpoint_cannot_have_are_refused(tmp_path, name, message):
    workdir = tmp_path / (name * 16 if name.endswith("/") else name)
    with pytest.raises(UserError, match=message) as caught, claim(workdir, small_config()):
        pass
    str(caught.value).encode()  # can be printed
    assert list(tmp_path.iterdir()) == []


def test_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    for umask, mode in ((0o077, 0o600), (0o022, 0o644)):
        before = os.umask(umask)
        write_json(path, {"a": 1})
        os.umask(before)
        assert path.read_text().endswith("}\n") and path.stat().st_mode & 0o777 == mode

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1} and list(tmp_path.iterdir()) == [path]
    write_json(path, {"a": 3})
    assert read_json(path) == {"a": 3}


def test_a_run_of_a_version_without_the_added_fields_is_the_same_run(tmp_path):
    config = json.loads(small_config().to_json())
    older = json.loads(json.dumps(config))
    for name, field in FIELDS.items():
        if field.added:
            section, _, last = name.rpartition(".")
            del (older[section] if section else older)[last]
    assert identity(older) == identity(config)
    (tmp_path / "config.json").write_text(json.dumps(older))
    check_same(tmp_path, config)
