"""train.py from the shell: a run that is killed and stopped on its way, and every way of giving it a wrong command."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dctps_jax import UserError
from dctps_jax.cli.experiments import default_workdir, find_experiment, names_in
from dctps_jax.defaults import FIELDS, get_config
from tests.small_runs import assert_same_end, steps

REPO = Path(__file__).parents[1]
DIGITS = ["--config", "configs/lenet_digits.py"]
SETTINGS = [
    "--config.num_epochs=2",
    "--config.batch_size=64",
    "--config.checkpoint_every_steps=1",
    "--config.data.augment=true",
    "--config.optimizer.milestones=(1,)",
]


@pytest.fixture(scope="module")
def environment():
    """Two devices; the compiler's options and the cache of programs are those of all tests."""
    return os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2")}


def start(environment, workdir, *arguments):
    command = [sys.executable, "train.py", *DIGITS, *SETTINGS, "--workdir", str(workdir), *arguments]
    return subprocess.Popen(
        command, cwd=REPO, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    assert "Traceback" not in out + err
    return process.returncode, out, err


def wait_for(process, condition):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def entries(workdir):
    folder = workdir / "checkpoints" / "latest"
    return [entry.name for entry in folder.iterdir()] if folder.exists() else []


def test_a_run_through_kills_and_signals_ends_as_one_undisturbed(tmp_path, environment):
    # Libraries take these characters for a pattern.
    plain, workdir = tmp_path / "plain", tmp_path / "run[1] {a,b}*?\\"
    code, out, err = finish(start(environment, plain))
    assert (code, err) == (0, "") and "2 cpu device(s)" in out and "epoch 2/2" in out
    assert out.splitlines()[-1].startswith("test accuracy")

    # Killed in the middle of a save, once there is something to go on from.
    process = start(environment, workdir)
    wait_for(process, lambda: any(int(name.partition(".")[0]) > 3 and "tmp" in name for name in entries(workdir)))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    reached = max(int(name) for name in entries(workdir) if name.isdigit())
    assert 0 < reached < 40

    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = start(environment, workdir)
        newer = reached + 2
        wait_for(process, lambda newer=newer: any(name == str(newer) for name in entries(workdir)))
        process.send_signal(number)
        found, out, err = finish(process)
        assert found == code and f"going on from step {reached}\n" in out
        reached = steps(workdir)[-1]
        answer, last = err.splitlines()
        assert answer.startswith(f"train.py: {number.name}: the step under way ends and is saved, then the run stops; ")
        assert last == (
            f"train.py: stopped by {number.name}; saved at step {reached}; the same command goes on from there"
        )
        assert newer <= reached < 40

    process = start(environment, workdir)
    wait_for(process, lambda: str(reached + 1) in entries(workdir))
    process.send_signal(signal.SIGSTOP)  # it must not end while the second one starts
    second = finish(start(environment, workdir))
    process.send_signal(signal.SIGCONT)
    assert second[0] == 75 and "is in use by another run" in second[2]
    assert finish(process)[::2] == (0, "")
    assert_same_end(workdir, plain)

    code, out, err = finish(start(environment, workdir))
    assert (code, err) == (0, "") and len(out.splitlines()) == 1 and f"{workdir} is finished. test accuracy" in out

    (workdir / "masks.npz").unlink()
    code, _, err = finish(start(environment, workdir))
    assert code == 0 and err.startswith("warning: ") and "masks.npz is missing and is written anew" in err
    assert err.count("\n") == 1


def test_a_run_that_grows_ends_as_if_it_had_been_started_so(tmp_path, environment):
    workdir, plain, epochs = tmp_path / "run", tmp_path / "plain", "--config.num_epochs=1"
    more = ["--config.num_epochs=2", "--config.num_seeds=2"]
    assert finish(start(environment, workdir, epochs))[::2] == (0, "")
    code, out, err = finish(start(environment, workdir, *more))
    assert (code, err) == (0, "")
    assert "run grows, num_epochs from 1 to 2; the earlier results are in " in out
    assert f"the run with seed 0 is in {workdir / 'seed_0'} now" in out
    assert finish(start(environment, plain, *more))[::2] == (0, "")
    for seed in ("seed_0", "seed_1"):
        assert_same_end(workdir / seed, plain / seed)
    assert (workdir / "config.json").read_bytes() == (plain / "config.json").read_bytes()
    code, _, err = finish(start(environment, workdir, epochs, more[1]))
    assert code == 2 and err.startswith(f"train.py: --workdir {workdir / 'seed_0'} has trained for 2 epochs, and ")
    assert err.count("\n") == 1


def wait_for_line(process, text):
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(process.communicate())


# Takes seconds to compile, and about a fifth of a second a step: signals arrive in the middle.
SLOW = ["--config.model.name=resnet18", "--config.model.width=8", "--config.batch_size=256"]


# While JAX is imported; after the last line before programs are compiled.
@pytest.mark.parametrize("text", ["", "checkpoint"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_training_ends_the_process_at_once(tmp_path, environment, number, text):
    process = start(environment | {"JAX_ENABLE_COMPILATION_CACHE": "false"}, tmp_path, *SLOW)
    if text:
        wait_for_line(process, text)
    time.sleep(0.5)
    process.send_signal(number)
    sent = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - sent < 5
    assert process.returncode == 128 + number
    assert err.startswith("train.py: stopped") and err.count("\n") == 1
    assert not (tmp_path / "checkpoints" / "latest").exists() or not steps(tmp_path)


def test_ctrl_c_after_the_outcome_leaves_the_exit_code(environment):
    program = (
        "import atexit, os, runpy, signal; atexit.register(os.kill, os.getpid(), signal.SIGINT); "
        "runpy.run_path('train.py', run_name='__main__')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=REPO,
        env=environment,
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    code, _, err = finish(process)
    assert code == 2 and "give a config" in err and err.count("\n") == 1


def test_a_second_signal_is_survived_and_a_third_is_not(tmp_path, environment):
    reached = None
    for how_many in (2, 3):
        process = start(environment, tmp_path, *SLOW, "--config.checkpoint_every_steps=0", "--config.num_epochs=9")
        wait_for_line(process, "compiled in")
        time.sleep(0.5)
        for number in range(how_many):
            process.send_signal(signal.SIGINT)
            if number < 2:
                assert f"{2 - number} more to stop at once" in process.stderr.readline()
        _, err = process.communicate(timeout=120)
        assert process.returncode == 130 and "Traceback" not in err
        if how_many == 2:
            reached = steps(tmp_path)[-1]
            assert f"stopped by SIGINT; saved at step {reached};" in err
        else:
            assert f"stopped at once by SIGINT; the steps after step {reached} are lost" in err
            assert steps(tmp_path)[-1] == reached


# Runs train.py once for each command of a list, in a fork of a process that has imported everything already.
MANY = """
import json, os, runpy, sys
import dctps_jax.cli.train  # what takes long is imported once; the backend of JAX is not started by it
outcomes, program = [], sys.argv[3]
for number, command in enumerate(json.loads(sys.argv[1])):
    child = os.fork()
    if child == 0:
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{sys.argv[2]}/{number}.{name}", os.O_CREAT | os.O_WRONLY), descriptor)
        sys.argv = ["train.py", *command]
        runpy.run_path(program, run_name="__main__")
        sys.exit(0)
    outcomes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(outcomes))
"""


def run_many(environment, folder, commands):
    """Return (exit code, stdout, stderr) for each command line, in ``folder``."""
    (folder / "configs").symlink_to(REPO / "configs")
    done = subprocess.run(
        [sys.executable, "-c", MANY, json.dumps(commands), str(folder), str(REPO / "train.py")],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(REPO)},
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout.splitlines()[-1])
    texts = [[(folder / f"{number}.{name}").read_text() for name in ("out", "err")] for number in range(len(codes))]
    return [(code, *text) for code, text in zip(codes, texts, strict=True)]


# The arguments, and what the sentence has to hold.
MISTAKES = {
    "no arguments": ([], ["--config", "--help"]),
    "stray argument": ([*DIGITS, "stray"], ["stray"]),
    "no such config file": (
        ["--config", "configs/nothing.py"],
        ["configs/nothing.py", "lenet_digits", "resnet50_cifar100"],
    ),
    "no such experiment": (["--config", "resnet5_cifar100"], ["resnet5_cifar100", "resnet50_cifar100"]),
    "config file with a mistake": (["--config", "{folder}/broken.py"], ["broken.py"]),
    "config file without get_config": (["--config", "{folder}/empty.py"], ["empty.py has no function get_config()"]),
    "config file with a wrong type": (["--config", "{folder}/wrong_type.py"], ["batch_size"]),
    "config file with a typo": (["--config", "{folder}/typo.py"], ["pruning.densty", "density"]),
    "unknown flag": ([*DIGITS, "--densty=1"], ["densty"]),
    "unknown field": ([*DIGITS, "--config.densty=1"], ["config.densty"]),
    "unknown field in a group": ([*DIGITS, "--config.pruning.densty=1"], ["config.pruning.densty", "density"]),
    "not a number": ([*DIGITS, "--config.batch_size=many"], ["config.batch_size", "many"]),
    "not a whole number": ([*DIGITS, "--config.batch_size=1.5"], ["config.batch_size", "1.5"]),
    "not true or false": ([*DIGITS, "--config.data.augment=maybe"], ["config.data.augment", "maybe"]),
    "number for a tuple": (
        [*DIGITS, "--config.optimizer.milestones=5"],
        ["config.optimizer.milestones is '5'", '"--config.optimizer.milestones=(5,)"'],
    ),
    "text for a tuple": (
        [*DIGITS, "--config.pruning.dense_layers", "conv1"],
        ["config.pruning.dense_layers is 'conv1'", "dense_layers=('conv1',)"],
    ),
    "broken tuple": ([*DIGITS, "--config.optimizer.milestones=(1,"], ["config.optimizer.milestones"]),
    "out of range": ([*DIGITS, "--config.pruning.density=1.5"], ["config.pruning.density is 1.5", "at most 1"]),
    "unknown method": ([*DIGITS, "--config.pruning.method=epll"], ["config.pruning.method", "'epl'", "erk"]),
    "unknown network": ([*DIGITS, "--config.model.name=lennet"], ["config.model.name", "'lenet'", "vgg16"]),
    "unknown offset": (
        [*DIGITS, "--config.model.offset=hadamar"],
        ["config.model.offset", "'hadamar'", "dct, hadamard"],
    ),
    "old method": (
        [*DIGITS, "--config.execution.method=dense"],
        ["config.execution.method is 'dense'; it is now called 'on_support'"],
    ),
    "unknown data": ([*DIGITS, "--config.data.name=digit"], ["config.data.name", "'digits'", "cifar10"]),
    "devices cannot share": ([*DIGITS, "--config.batch_size=65"], ["config.batch_size is 65", "2 devices", "64"]),
    "more than there are": ([*DIGITS, "--config.batch_size=5000"], ["config.batch_size is 5000", "1293"]),
}
COMMON = "from dctps_jax import defaults\ndef get_config():\n    c = defaults.get_config()\n"
FILES = {
    "broken.py": "def get_config(:\n",
    "empty.py": "x = 1\n",
    "wrong_type.py": COMMON + "    c.batch_size = '64'\n    return c\n",
    "typo.py": COMMON + "    c.num_epochs = 1\n    c.data.name = 'digits'\n    c.pruning.densty = 1\n    return c\n",
}


@pytest.fixture(scope="module")
def outcomes(environment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistakes")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    commands, workdirs = [], []
    for number, (arguments, _) in enumerate(MISTAKES.values()):
        workdirs.append(folder / f"run{number}")
        workdir = ["--workdir", str(workdirs[-1])] if arguments else []
        commands.append([argument.format(folder=folder) for argument in arguments] + workdir)
    diverging = ["--config.optimizer.name=sgd", "--config.optimizer.learning_rate=1e20", "--config.num_epochs=1"]
    commands.append([*DIGITS, *diverging, "--workdir", str(folder / "diverging")])
    hadamard = folder / "hadamard"
    options = ["--config.model.offset=hadamard", "--config.num_epochs=2", "--config.pruning.density=0.05"]
    commands.append([*DIGITS, *options, "--workdir", str(hadamard)])
    without_directory = [*DIGITS, "--config.num_epochs=1", "--config.seed=3", "--config.tensorboard=false"]
    commands += [without_directory, without_directory, ["--help"], ["-h"]]
    found = run_many(environment, folder, commands)
    mistakes, others = found[: len(MISTAKES)], found[len(MISTAKES) :]
    return {
        "diverging": others[0],
        "hadamard": (others[1], hadamard),
        "without directory": (others[2:4], folder),
        "help": others[4:],
    } | dict(zip(MISTAKES, zip(mistakes, workdirs, strict=True), strict=True))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_sentence(outcomes, mistake):
    (code, _, err), workdir = outcomes[mistake]
    assert code == 2, err
    assert err.startswith("train.py: ") and err.count("\n") == 1 and len(err) < 500
    assert "Traceback" not in err and 'File "' not in err and "\\n" not in err
    for part in MISTAKES[mistake][1]:
        assert part in err
    assert not workdir.exists() or not {entry.name for entry in workdir.iterdir()} - {".lock"}


def test_a_network_with_another_offset_trains(outcomes):
    (code, out, err), workdir = outcomes["hadamard"]
    assert (code, err) == (0, "") and "epoch 2/2" in out
    results = json.loads((workdir / "results.json").read_text())
    assert json.loads((workdir / "config.json").read_text())["model"]["offset"] == "hadamard"
    assert results["flops"]["training_step"]["offset"] > 0
    assert results["test_accuracy_final"] > 0.4  # a tenth by chance


def test_loss_that_is_not_finite(outcomes):
    code, _, err = outcomes["diverging"]
    assert code == 3
    assert err.startswith("train.py: the loss is not finite at step 1;") and "learning_rate=1e+19" in err
    assert err.count("\n") == 1


def test_a_command_without_a_directory_has_one_of_its_own(outcomes):
    (first, second), folder = outcomes["without directory"]
    assert first[::2] == second[::2] == (0, "")
    name = "runs/lenet_digits,num_epochs=1,seed=3"
    assert first[1].startswith(f"directory: {name}\n") and (folder / name / "results.json").exists()
    again, finished = second[1].splitlines()
    assert again == f"directory: {name}" and f"{name} is finished. test accuracy" in finished


def test_help_has_every_field(outcomes):
    for code, out, err in outcomes["help"]:
        assert (code, err) == (0, "")
        assert all(f"--config.{name}={field.default!r}" in out for name, field in FIELDS.items())
        assert "lenet_digits" in out and "--workdir" in out


def test_names_of_experiments_are_all_that_there_are():
    with pytest.raises(UserError, match=r"one of: .*lenet_digits, .*, recipes/modern_cifar10$"):
        find_experiment("--config", "unknown")
    with pytest.raises(
        UserError,
        match=r"one of: comparison, deep, density, digits, extreme, lowest_density, methods, offset, schedules$",
    ):
        find_experiment("--sweep", "unknown", "sweeps")
    assert all(find_experiment("--config", name).is_file() for name in names_in())


def test_directories_of_commands(tmp_path):
    config = get_config()
    overrides = {"tensorboard": False, "pruning.density": 0.1, "execution.form": "masked"}

    def name(*files, **fields):
        return str(default_workdir("runs", files, overrides | fields, config))

    assert name("configs/lenet.py") == "runs/lenet,pruning.density=0.1"  # without what a resumed run may change
    assert name("density", "a/lenet.py:small") == "runs/density,lenet_small,pruning.density=0.1"
    config.data.name = "image_folder"
    overrides = {"data.dir": "/" + "long/" * 100}
    assert len(name("lenet.py")) < 160 and name("lenet.py") != name("lenet.py", **{"data.dir": "/long"})


def test_a_directory_of_an_earlier_version_keeps_its_name(tmp_path):
    overrides = {"model.options": (("width", 4), ("depth", -2)), "num_epochs": 2}
    config = get_config()
    new, old = (
        "x,model.options=width-4-depth--2,num_epochs=2",
        "x,model.options=___width___4_____depth___-2__,num_epochs=2",
    )
    assert default_workdir(str(tmp_path), ["x.py"], overrides, config) == tmp_path / new
    (tmp_path / old).mkdir()
    assert default_workdir(str(tmp_path), ["x.py"], overrides, config) == tmp_path / old
    (tmp_path / new).mkdir()
    assert default_workdir(str(tmp_path), ["x.py"], overrides, config) == tmp_path / new
