"""How the programs end: one sentence and an exit code for each fault that a user can mend."""

import errno
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from dctps_jax import UserError, export
from dctps_jax.cli import predict, train
from dctps_jax.command import command
from dctps_jax.errors import DiskFull
from dctps_jax.reports import curves, masks, report
from dctps_jax.training.signals import NonFiniteLoss, Stopped
from tests.commands import assert_one_sentence, call, call_into_closed_pipe
from tests.fake_runs import make_run
from tests.limits import no_more_handles

REPO = Path(__file__).parents[1]
MAINS = {
    "export": export.main,
    "report": report.main,
    "curves": curves.main,
    "masks": masks.main,
    "predict.py": predict.main,
}


def test_the_installed_package_has_every_program():
    scripts = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["scripts"]
    mains = {
        name: getattr(importlib.import_module(module), function)
        for name, (module, function) in ((name, path.split(":")) for name, path in scripts.items())
    }
    assert {f"dctps-{name.removesuffix('.py')}": main for name, main in MAINS.items()}.items() <= mains.items()
    documents = "".join((REPO / name).read_text() for name in ("README.md", "docs/index.md"))
    assert all(documents.count(name) >= 2 for name in scripts)


def failing(error):
    @command("program")
    def main():
        print("begun")
        raise error

    return main


ENDINGS = {
    "mistake": (UserError("the field is wrong"), 2, ["the field is wrong"]),
    "signal": (Stopped(15, 7), 143, ["stopped by SIGTERM; saved at step 7"]),
    "loss": (NonFiniteLoss(3), 3, ["not finite at step 3"]),
    "ctrl-c": (KeyboardInterrupt(), 130, ["stopped by SIGINT"]),
    "permission": (OSError(errno.EACCES, "Permission denied", "/a/b"), 2, ["/a/b", "Permission denied"]),
    "bytes": (OSError(errno.EISDIR, "Is a directory", b"/a/b\xe9"), 2, ["/a/b\\udce9", "Is a directory"]),
    "no file": (OSError(errno.EIO, "Input/output error"), 2, ["Input/output error"]),
    "full disk": (OSError(errno.ENOSPC, "No space left on device", "/a/b"), 74, ["/a has no room for b"]),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), 74, ["Disk quota exceeded"]),
    "full disk in a library": (ValueError("RESOURCE_EXHAUSTED: No space left on device"), 74, ["is full"]),
    "known size": (DiskFull.at(Path("/a/b"), 12345), 74, ["/a has no room for b (12,345 bytes)"]),
    "files": (OSError(errno.EMFILE, "Too many open files", "/a/b"), 71, ["Too many open files: '/a/b'", "ulimit"]),
    "memory": (MemoryError("Unable to allocate 9 TiB"), 71, ["memory", "Unable to allocate 9 TiB"]),
    "memory without text": (MemoryError(), 71, ["MemoryError"]),
    "device": (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes"), 71, ["allocating 5 bytes"]),
    "extra": (ModuleNotFoundError("No module", name="sklearn"), 2, ["sklearn is not installed", "dctps_jax[data]"]),
    "threads": (RuntimeError("can't start new thread"), 71, ["can't start new thread"]),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_fault_is_one_sentence_and_an_exit_code(ending, monkeypatch):
    monkeypatch.delenv("DCTPS_DEBUG", raising=False)
    error, code, parts = ENDINGS[ending]
    done = call(failing(error))
    assert done.out == "begun\n"
    assert_one_sentence(done._replace(out=""), "program", *parts, code=code)
    monkeypatch.setenv("DCTPS_DEBUG", "1")
    debugged = call(failing(error))
    assert debugged.code == code and debugged.err.startswith("Traceback") and debugged.err.endswith(done.err)


def test_too_few_file_handles(tmp_path):
    make_run(tmp_path / "run")
    figures = {program: [tmp_path / "run", "--output", tmp_path / program] for program in ("curves", "masks")}
    exported = REPO / "tests" / "reference" / "export_version_1.safetensors"
    others = {"report": [tmp_path / "run", "--output", tmp_path], "predict.py": [exported, tmp_path / "image.png"]}
    for program, arguments in (figures | others).items():
        with no_more_handles():
            done = call(MAINS[program], *arguments)
        assert_one_sentence(done, program, "Too many open files", "ulimit", code=71)
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_a_full_disk_is_known_behind_another_message():
    @command("program")
    def main():
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise UserError("--workdir cannot be written (No space left on device)") from error

    assert_one_sentence(call(main), "program", "--workdir cannot be written", code=74)


def test_an_error_of_orbax_is_a_sentence(tmp_path):
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(tmp_path / "saved", {"a": np.ones(3)})
    checkpointer.wait_until_finished()
    (tmp_path / "saved" / "_METADATA").write_text("{")

    @command("program")
    def main():
        checkpointer.restore(tmp_path / "saved")

    assert_one_sentence(call(main), "program", "a checkpoint cannot be read or written")


def test_our_own_mistakes_show_a_traceback():
    with pytest.raises(ZeroDivisionError):
        call(failing(ZeroDivisionError()))


@pytest.mark.parametrize("name", MAINS)
def test_every_program_ends_that_way(name, tmp_path):
    output = [] if name in ("predict.py", "report") else ["--output", tmp_path / "output"]
    second = [tmp_path / "image.png"] if name == "predict.py" else []
    assert_one_sentence(call(MAINS[name], tmp_path / "none", *second, *output), name, "none", "does not exist")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("program", ["train.py", "sweep.py"])
def test_the_training_programs_end_that_way(program, tmp_path):
    command = [sys.executable, program, "--config=configs/none.py", f"--workdir={tmp_path}"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith(f"{program}: --config: 'configs/none.py' does not exist")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("argument", "advice"),
    [
        (
            "--pruning.density=0.05",
            "no option --pruning.density=0.05; a field of the config is set by --config.pruning.",
        ),
        ("--density=0.05", "is set by --config.pruning.density=0.05"),
        ("-seed", "is set by --config.seed"),
        ("--name=lenet", "--config.data.name=lenet or --config."),
    ],
)
def test_a_field_without_config_before_it_is_recognised(argument, advice):
    with pytest.raises(UserError, match=re.escape(advice)):
        train.parse_flags(["train.py", "--config=configs/lenet_digits.py", argument])


def test_a_run_that_is_not_finished_is_not_exported(tmp_path):
    make_run(tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    done = call(export.main, tmp_path / "run", "--output", tmp_path / "model.safetensors")
    assert_one_sentence(done, "export", "run is the directory of a run that is not finished; give the command that")


def test_a_run_of_a_sweep_that_fails_is_told_once(tmp_path):
    (tmp_path / "grid.py").write_text("def get_sweep():\n    return {'data.name': ('none.npz',)}\n")
    command = [sys.executable, "sweep.py", "--config=configs/lenet_digits.py", f"--sweep={tmp_path / 'grid.py'}"]
    done = subprocess.run([*command, f"--workdir={tmp_path}"], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == "1 runs, 0 of them finished\n0 of 1 runs are finished\n"
    reason, summary = done.stderr.splitlines()
    assert reason.startswith("data.name=none.npz failed, exit status 2: train.py: none.npz does not exist"), reason
    assert summary == "sweep.py: 1 of 1 runs failed (data.name=none.npz); the same command tries them again"


def test_a_reader_that_is_gone_ends_it_quietly(tmp_path):
    make_run(tmp_path / "run")
    for name in ("report", "curves", "masks"):
        output = [] if name == "report" else ["--output", tmp_path / name]
        done = call_into_closed_pipe(MAINS[name], tmp_path / "run", *output)
        assert (done.code, done.err) == (141, ""), name
    # The figures are there: they are written before a word is printed.
    assert {"curves.png", "masks.png"} <= {file.name for file in tmp_path.iterdir()}
    # The mistake is told even where nobody reads the output.
    assert call_into_closed_pipe(MAINS["report"], tmp_path / "none").code == 2


def test_help_into_a_pipe(tmp_path):
    for program in ("train.py", "sweep.py"):
        command = f"{sys.executable} {program} --help | true; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], cwd=REPO, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (141, ""), program


def test_an_output_that_cannot_be_written_is_told():
    if not os.path.exists("/dev/full"):
        pytest.skip("/dev/full is Linux's")
    program = "from dctps_jax.command import command\nwith command('program'): print('text')"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", program], cwd=REPO, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 74 and done.stderr.startswith("program: the disk or the quota is full")
    assert done.stderr.count("\n") == 1


def test_names_that_are_no_utf_8(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9$x$")
    try:
        make_run(folder)
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    make_run(tmp_path / "_other", offset=None)
    for name in ("report", "curves", "masks"):
        output = folder / name
        both = [tmp_path] if name == "report" else [folder, tmp_path / "_other"]
        done = call(MAINS[name], *both, "--output", output)
        assert done.code == 0 and done.err == "" and "caf\\udce9" in done.out, done
    done = call(MAINS["export"], folder, "--output", tmp_path / "model.safetensors")
    assert_one_sentence(done, "export", "caf\\udce9", "no UTF-8", "rename")


def test_full_and_read_only_disks(tmp_path):
    """On disks of their own, which only Linux lets an ordinary user have."""
    probe = ["unshare", "--user", "--map-root-user", "--mount", "true"]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("no mounts of one's own here")
    make_run(tmp_path / "run")
    (tmp_path / "disk").mkdir()
    script = """
        mount -t tmpfs -o size=16k none disk || exit 99
        for path in rep fig.png; do
            if [ $path = rep ]; then program=report; else program=curves; fi
            {python} -m dctps_jax.reports.$program run --output disk/$path; echo code $? >&2
        done
        ls -A disk >&2
        mount -o remount,ro disk || exit 99
        {python} -m dctps_jax.reports.report run --output disk/rep; echo code $? >&2
        {python} -m dctps_jax.reports.report run --output disk/new; echo code $? >&2
    """
    done = subprocess.run(
        [*probe[:-1], "sh", "-c", script.replace("{python}", sys.executable)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 99:
        pytest.skip("no mounts of one's own here")
    lines = done.stderr.splitlines()
    disk = tmp_path / "disk"
    assert lines[0].startswith(f"report: {disk / 'rep'} has no room for accuracy.png (") and lines[1] == "code 74"
    assert lines[2].startswith(f"curves: {disk} has no room for fig.png (") and " bytes are free there. " in lines[2]
    assert lines[3:5] == ["code 74", "rep"]  # no half file is left
    assert lines[5] == (
        "report: disk/rep/report.md cannot be read or written (Read-only file system); mend that or name another one"
    )
    assert "disk/new cannot be read or written (Read-only" in lines[7] and lines[6] == lines[8] == "code 2"


def test_files_that_are_no_files_are_left_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    make_run(tmp_path / "run")
    for program in ("curves", "masks", "export"):
        for target, found in (
            (tmp_path, "is a directory"),
            (tmp_path / "pipe", "is a device or a pipe"),
            (tmp_path / "run" / "config.json" / "x", "is no directory"),
            ("", "is a directory"),
        ):
            assert_one_sentence(
                call(MAINS[program], tmp_path / "run", "--output", target), program, "--output is ", found
            )
    (tmp_path / "rep" / "report.md").mkdir(parents=True)
    done = call(MAINS["report"], tmp_path / "run", "--output", tmp_path / "rep")
    assert_one_sentence(done, "report", str(tmp_path / "rep" / "report.md"), "Is a directory")
    assert [entry.name for entry in (tmp_path / "rep").iterdir()] == ["report.md"]
