"""Networks and images of the user's own go through all programs: train, resume, export, predict."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from dctps_jax import export
from dctps_jax.cli import predict
from dctps_jax.config import check_config
from dctps_jax.defaults import get_config
from dctps_jax.errors import UserError
from dctps_jax.ops.target import tracing_for
from dctps_jax.pruning import get_masks, load_masks
from dctps_jax.runs.fields import check_results
from dctps_jax.safetensors_file import digest_of_file
from dctps_jax.training.from_config import load_data
from dctps_jax.training.own_network import describe_program
from dctps_jax.training.run import run
from dctps_jax.training.signals import Stopped, StopSignals
from examples.own_network import experiment
from tests.commands import assert_one_sentence, call
from tests.small_runs import assert_same_end, rows

REPO = Path(__file__).parents[1]
NETWORKS = """
import jax.numpy as jnp
from flax import nnx
from dctps_jax import DCTpSLinear

class Net(nnx.Module):
    def __init__(self, num_classes, image_size, channels, rngs, width=8, rate=0.5):
        self.conv = nnx.Conv(channels, width, (3, 3), rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.head = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.relu(self.conv(x))).mean((1, 2)))

class Linear(nnx.Module):
    def __init__(self, num_classes, image_size, channels, offset, rngs):
        self.head = DCTpSLinear(image_size[0] * image_size[1] * channels, num_classes, offset=offset, rngs=rngs)

    def __call__(self, x):
        return self.head(x.reshape(len(x), -1))

class Counting(Net):
    def __init__(self, num_classes, rngs):
        super().__init__(num_classes, 6, 1, rngs)
        self.calls = nnx.Variable(jnp.zeros(()))

    def __call__(self, x):
        self.calls[...] += 1
        return super().__call__(x)

def features(rngs):
    return nnx.Conv(1, 3, (3, 3), rngs=rngs)

def nothing(**arguments):
    return None

def failing(num_classes):
    raise RuntimeError("no such weather")

def seeded(num_classes, rngs, seed):
    return None

def by_place(num_classes, /):
    return None

class Empty(nnx.Module):
    pass

class Mode(nnx.Module):
    def __init__(self, **arguments):
        pass

    def __call__(self, x, train):
        return x

class Narrow(nnx.Module):
    def __init__(self, num_classes, rngs):
        self.head = nnx.Linear(5, num_classes, rngs=rngs)

    def __call__(self, x):
        return self.head(x.reshape(len(x), -1))

class Deep(nnx.Module):
    def __init__(self, num_classes, rngs):
        self.blocks = nnx.vmap(lambda rngs: nnx.Linear(24, 24, rngs=rngs))(rngs.fork(split=2))
        self.head = nnx.Linear(24, num_classes, rngs=rngs)

    def __call__(self, x):
        x = x.reshape(len(x), -1)
        x = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.blocks)
        return self.head(x)

class Kinds(nnx.Module):
    def __init__(self, num_classes, rngs):
        self.up = nnx.ConvTranspose(1, 4, (3, 3), transpose_kernel=True, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.mix = nnx.Einsum("nta,ab->ntb", (4, 6), (6,), rngs=rngs)
        self.head = nnx.LinearGeneral((24, 6), num_classes, axis=(-2, -1), rngs=rngs)

    def __call__(self, x):
        x = self.up(x).reshape(x.shape[0], 24, 4)
        return self.head(self.mix(self.attention(x)))

class OneSize(Net):
    def __call__(self, x):
        return super().__call__(x.reshape(len(x), *x.shape[1:]))
"""
DATA = """
import numpy as np
from dctps_jax.data import Dataset

def part(count, seed):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, count)
    images = random.integers(0, 100, (count, 6, 4, 1)) + 100 * labels[:, None, None, None]
    return images.astype(np.uint8), labels

def load(seed):
    return part(40, seed), part(20, seed + 100)

def from_one(seed):
    (images, labels), (test_images, test_labels) = load(seed)
    return (images, labels + 1), (test_images, test_labels + 1)

def named(seed):
    (images, labels), (test_images, test_labels) = load(seed)
    names = ("cat", "dog", "owl")
    return Dataset("pets", images, labels.astype(np.int32), test_images, test_labels.astype(np.int32) + 1, names)

def floats(dir, image_size):
    return (np.zeros((4, 2, 2, 3)), np.zeros(4, int)), (np.zeros((4, 2, 2, 3)), np.zeros(4, int))

def one():
    return 1

def ragged():
    return ([[1], [1, 2]], [0, 1]), ([[1], [1, 2]], [0, 1])

def of_many(dir, count):
    return 1
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder that a user works in, with modules of their own."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "networks.py").write_text(NETWORKS)
    (tmp_path / "mine" / "images.py").write_text(DATA)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    forget("mine")


def forget(*packages):
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]


def config_of(network="mine.networks:Net", images="mine.images:load", **fields):
    config = get_config()
    config.num_epochs, config.batch_size, config.tensorboard = 2, 8, False
    config.model.name, config.data.name = network, images
    config.data.augment = False
    config.execution.keep_memory = False
    config.pruning.density = 0.5
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config


def message_of(**fields):
    with pytest.raises(UserError) as caught:
        check_config(config_of(**fields))
        run(config_of(**fields), Path("refused"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


class StopAt(StopSignals):
    """Asks the run to stop as soon as it looks, after it has saved nothing yet or `step` steps."""

    def __init__(self, looks):
        super().__init__(ends_process=False)
        self.looks = looks

    @property
    def number(self):
        self.looks -= 1
        return 2 if self.looks < 0 else None

    @number.setter
    def number(self, value):  # pyright: ignore[reportIncompatibleVariableOverride]
        pass


@pytest.mark.usefixtures("folder", "small")
def test_a_network_with_dropout_resumes_bit_for_bit_and_is_exported(capsys):
    results = run(config_of(model__options=(("width", 6),), model__exclude=("head",)), Path("whole"))
    check_results(results)
    out = capsys.readouterr().out
    assert "Linear  " in out and "left: excluded" in out and "parameters are trained" in out
    # conv: 54 weights, 27 of them trained, 6 biases and α; head: 14 of 14.
    assert results["density_of_all_parameters"] == pytest.approx((27 + 6 + 1 + 14) / (54 + 6 + 1 + 14))
    assert results["data"]["image_size"] == [6, 4] and len(results["data"]["mean"]) == 1
    with pytest.raises(Stopped):
        run(config_of(model__options=(("width", 6),), model__exclude=("head",)), Path("parts"), StopAt(3))
    run(config_of(model__options=(("width", 6),), model__exclude=("head",)), Path("parts"))
    assert_same_end(Path("parts"), Path("whole"))
    # Without dropout, other losses: it was in use.
    run(config_of(model__options=(("width", 6), ("rate", 0.0)), model__exclude=("head",)), Path("plain"))
    assert rows(Path("plain"))[0]["train_loss"] != rows(Path("whole"))[0]["train_loss"]

    assert call(export.main, "whole", "--output", "net.safetensors").code == 0
    for count in (0, 1):
        Image.new("RGB", (4 + 4 * count, 6 + 6 * count), (50, 20, 10)).save(f"red{count}.png")
    Image.fromarray(np.full((12, 8), 30, np.uint8)).save("dark.png")
    unasked = call(predict.main, "net.safetensors", "dark.png")
    assert_one_sentence(unasked, "predict.py", "--network mine.networks:Net", "network='mine.networks:Net'")
    done = call(predict.main, "net.safetensors", "dark.png", "--network", "mine.networks:Net")
    assert done.code == 0 and done.out.startswith("dark.png: ")
    assert done.err == "dark.png has 8 x 12 pixels and is resized to 4 x 6\n"
    done = call(predict.main, "net.safetensors", "red0.png", "red1.png", "--network", "mine.networks:Net")
    grey = "red0.png is a colour image and is made grey, as the network takes grey images\n"
    assert done.code == 0 and done.err == f"{grey}red1.png has 8 x 12 pixels and is resized to 4 x 6\n"
    _, model = export.read_exported("net.safetensors", "mine.networks:Net")
    assert model(jnp.zeros((1, 6, 4, 1))).shape == (1, 2)


CONFIG = """
from dctps_jax.defaults import get_config as get_defaults

def get_config():
    config = get_defaults()
    config.num_epochs, config.batch_size, config.tensorboard, config.data.augment = 1, 8, False, False
    config.model.name, config.data.name = "mine.networks:Net", "mine.images:load"
    config.pruning.density = 0.5
    return config
"""


def shell(module, *arguments):
    """Run a program of the package as the shell does, with one device."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-m", f"dctps_jax.{module}", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done
    return done.stdout


@pytest.mark.usefixtures("folder", "small")
@pytest.mark.parametrize(("form", "offset"), [("compact", "dct"), ("masked", None)])
def test_a_network_of_other_kinds_of_layers_is_trained_and_exported(form, offset):
    settings = {"network": "mine.networks:Kinds", "execution__form": form, "model__offset": offset}
    run(config_of(**settings), Path("whole"))
    with pytest.raises(Stopped):
        run(config_of(**settings), Path("parts"), StopAt(3))
    run(config_of(**settings), Path("parts"))
    assert_same_end(Path("parts"), Path("whole"))
    network = "--network", "mine.networks:Kinds"
    done = call(export.main, "whole", "--output", "net.safetensors", "--stablehlo", "net.stablehlo", *network)
    assert done.code == 0, done
    description, model = export.read_exported("net.safetensors", "mine.networks:Kinds")
    program = jax.export.deserialize(bytearray(Path("net.stablehlo").read_bytes()))
    for count in (1, 3):
        images = jax.random.bits(jax.random.key(count), (count, *description.shape), jnp.uint8)
        np.testing.assert_allclose(program.call(images), model(description.prepare(images)), rtol=1e-4, atol=1e-5)
    assert [type(layer).__name__ for layer in (model.up, model.mix, model.head, model.attention.query)] == [
        "DCTpSConvTranspose",
        "DCTpSEinsum",
        "DCTpSLinearGeneral",
        "DCTpSLinearGeneral",
    ]
    masks, expected = get_masks(model), load_masks("whole/masks.npz")
    assert masks.keys() == expected.keys() and all((masks[path] == expected[path]).all() for path in masks)


@pytest.mark.usefixtures("folder", "small")
def test_a_network_that_needs_to_know_its_batch_is_no_stablehlo():
    settings = {"network": "mine.networks:OneSize"}
    run(config_of(**settings, num_epochs=1), Path("run"))
    with pytest.raises(UserError) as error:
        export.export_run("run", "net.safetensors")
        export.export_stablehlo("net.safetensors", "net.stablehlo", "mine.networks:OneSize")
    assert "takes no batch whose size is not known" in str(error.value) and "networks.py" in str(error.value)
    assert not Path("net.stablehlo").exists()


@pytest.mark.usefixtures("folder")
def test_a_sweep_of_a_network_grows_and_all_programs_read_it():
    sweep = ["--config", "experiment.py", "--sweep", "grid.py", "--workdir", "sweep"]
    Path("experiment.py").write_text(CONFIG)
    Path("grid.py").write_text("def get_sweep():\n    return {'pruning.density': (0.5,)}\n")
    shell("cli.sweep", *sweep)
    # More epochs, another value and another field.
    Path("grid.py").write_text(
        "def get_sweep():\n    return {'pruning.density': (0.5, 0.25), 'model.alpha_trainable': (True, False)}\n"
    )
    out = shell("cli.sweep", *sweep, "--config.num_epochs=2")
    assert "4 runs, 0 of them finished" in out and "4 of 4 runs are finished" in out
    assert len(list(Path("sweep").iterdir())) == 4
    shell("cli.train", "--config", "experiment.py", "--workdir", "plain", "--config.num_epochs=2")
    assert_same_end(Path("sweep/pruning.density=0.5"), Path("plain"))

    shell("reports.report", "sweep")
    table = Path("sweep/report.md").read_text()
    assert all(table.count(f"| {density} % |") >= 2 for density in (50, 25)) and "model.alpha_trainable" in table
    assert "conv " in shell("reports.masks", "sweep", "--output", "masks.png")
    asked = ["--network", "mine.networks:Net"]
    shell("export", "plain", "--output", "net.safetensors", "--stablehlo", "net.stablehlo", *asked)
    Image.fromarray(np.full((6, 4), 30, np.uint8)).save("dark.png")
    assert shell("cli.predict", "net.safetensors", "dark.png", *asked).startswith("dark.png: ")


@pytest.mark.usefixtures("folder", "small")
def test_changed_code_does_not_go_on():
    with pytest.raises(Stopped):
        run(config_of(), Path("run"), StopAt(2))
    edit = Path("mine/networks.py").read_text
    before = edit()
    changes = {
        "nnx.relu(self.conv(x))": ("nnx.gelu(self.conv(x))", "computes something else now"),
        "width=8": ("width=9", "another network"),
    }
    for old, (new, words) in changes.items():
        Path("mine/networks.py").write_text(before.replace(old, new))
        forget("mine")
        with pytest.raises(UserError, match=words):
            run(config_of(), Path("run"))
    Path("mine/networks.py").write_text("# A comment changes nothing.\n" + before)
    forget("mine")
    run(config_of(), Path("run"))


def edit_networks(old, new):
    """Change the user's code, as between two programs."""
    Path("mine/networks.py").write_text(NETWORKS.replace(old, new))
    forget("mine")


def without_record(file, target, **changes):
    """An exported file as one of before, or with another record of its network."""
    with safe_open(file, framework="numpy") as opened:
        metadata = opened.metadata()
    metadata = {name: text for name, text in metadata.items() if name not in ("network", "digest")} | changes
    tensors = load_file(file)
    save_file(tensors, target, metadata | {"digest": digest_of_file(tensors, metadata)})


@pytest.mark.usefixtures("folder", "small")
def test_a_network_that_changed_after_training_is_noticed(monkeypatch):
    name = "mine.networks:Net"
    one_epoch: dict[str, Any] = {"num_epochs": 1}
    run(config_of(**one_epoch), Path("run"))
    check_results(json.loads(Path("run/results.json").read_text()))
    Image.fromarray(np.full((6, 4), 30, np.uint8)).save("dark.png")
    export_it = export.main, "run", "--output", "net.safetensors", "--stablehlo", "net.stablehlo"
    done = call(*export_it)
    assert_one_sentence(done, "export", "run holds a network that mine.networks:Net built", f"--network {name}")
    assert not list(Path.cwd().glob("net.*"))  # nothing is written before all can be
    assert call(*export_it, "--network", name).code == 0
    predict_it = predict.main, "net.safetensors", "dark.png", "--network", name
    before = call(*predict_it)
    assert (before.code, before.err) == (0, "")
    without_record("net.safetensors", "old.safetensors")

    # Another function, with the same parameters.
    edit_networks("nnx.relu", "nnx.gelu")
    words = "holds another network than mine.networks:Net builds", "computes something else now", "put back the code"
    assert_one_sentence(call(*predict_it), "predict.py", "net.safetensors", *words)
    with pytest.raises(UserError, match="computes something else now"):
        export.export_stablehlo("net.safetensors", "new.stablehlo", name)
    done = call(export.main, "run", "--output", "new.safetensors", "--network", name)
    assert_one_sentence(done, "export", "run holds", *words)
    assert not list(Path.cwd().glob("new.*"))
    with pytest.raises(
        UserError, match=r"function that config\.model\.name names has changed, and its network computes"
    ):
        run(config_of(**one_epoch), Path("run"))
    with pytest.raises(UserError, match="computes something else now"):  # seeds would be of different networks
        run(config_of(**one_epoch, num_seeds=2), Path("run"))
    # What says nothing of its network is taken, and programs of other versions of JAX are not compared.
    assert call(predict.main, "old.safetensors", *predict_it[2:]).code == 0
    record = json.loads(Path("run/results.json").read_text())["network"]
    without_record("net.safetensors", "other.safetensors", network=json.dumps(record | {"jax": "0.0.1"}))
    assert call(predict.main, "other.safetensors", *predict_it[2:]).code == 0

    # Other parameters: their shapes say it for all versions, and for files of before.
    edit_networks("width=8", "width=9")
    for file in ("net.safetensors", "other.safetensors"):
        done = call(predict.main, file, *predict_it[2:])
        assert_one_sentence(
            done, "predict.py", "has other shapes now", "conv.kernel [3, 3, 1, 8] then, [3, 3, 1, 9] now"
        )
    done = call(predict.main, "old.safetensors", *predict_it[2:])
    assert_one_sentence(done, "predict.py", "old.safetensors holds another network", "conv/bias [8] then, [9] now")
    edit_networks("self.conv", "self.features")
    done = call(predict.main, "old.safetensors", *predict_it[2:])
    assert_one_sentence(done, "predict.py", "has no layer conv with a kernel of more than", "put back the code")

    # The file is sound, and nobody says otherwise.
    edit_networks("Net", "Net")
    for network, words in {
        "mine.networks:Nat": "has no function 'Nat' (did you mean 'Net'?)",
        "nets:Net": "there is no module 'nets' here",
        "mine.networks:failing": "RuntimeError: no such weather",
    }.items():
        done = call(*predict_it[:-1], network)
        assert_one_sentence(done, "predict.py", f"--network is {network!r}", words)
        assert "export the run again" not in done.err
    (Path.cwd() / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(Path.cwd().parent))])
    forget("mine")
    done = call(predict.main, "../net.safetensors", "../dark.png", "--network", name)
    assert_one_sentence(done, "predict.py", "no module 'mine' here", "start the program in the folder that holds mine/")
    monkeypatch.chdir("..")
    assert call(*predict_it) == before
    Path("mine/networks.py").write_text("# A comment changes nothing.\n" + NETWORKS)
    forget("mine")
    assert call(*predict_it) == before
    assert run(config_of(**one_epoch), Path("run"))["network"] == record


@pytest.mark.usefixtures("folder")
def test_a_network_is_the_same_on_every_platform():
    Path("mine/networks.py").write_text(
        NETWORKS.replace("self.head(x.re", "self.head(materialized(x).re").replace(
            "import DC", "import materialized, DC"
        )
    )
    config = config_of("mine.networks:Linear")
    here = describe_program(config, 2, (6, 4), 1)
    with tracing_for("tpu"), jax.default_matmul_precision("highest"):
        assert describe_program(config, 2, (6, 4), 1) == here


@pytest.mark.usefixtures("folder", "small")
def test_a_network_with_layers_of_its_own_and_images_that_change(capsys):
    settings = {"network": "mine.networks:Linear", "pruning__method": "snip", "num_epochs": 1, "data__augment": True}
    run(config_of(**settings, num_seeds=2), Path("seeds"))
    assert "K = α·D + M⊙S, 24 weights" in capsys.readouterr().out
    digests = [json.loads((Path("seeds") / f"seed_{seed}/data.json").read_text())["fingerprint"] for seed in (0, 1)]
    assert digests[0] != digests[1]  # the function draws other images for another seed
    with pytest.raises(Stopped):
        run(config_of(**settings), Path("run"), StopAt(2))
    Path("mine/images.py").write_text(DATA.replace("100 * labels", "99 * labels"))
    forget("mine")
    with pytest.raises(UserError, match="belongs to a run on other data: the content of images"):
        run(config_of(**settings), Path("run"))


@pytest.mark.usefixtures("folder", "small")
@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        (
            {"network": "mine.nets:Net"},
            ["config.model.name is 'mine.nets:Net'", "no module 'mine.nets'", "that holds mine/nets.py"],
        ),
        ({"network": "mine.networks:Nat"}, ["mine.networks has no function 'Nat' (did you mean 'Net'?)"]),
        ({"network": "mine.networks"}, ["config.model.name is 'mine.networks'", "my_package.my_module:my_function"]),
        ({"network": "mine.networks:nothing"}, ["returns NoneType", "nnx.Module"]),
        ({"network": "mine.networks:failing"}, ["RuntimeError: no such weather", "line 38 of", "networks.py"]),
        (
            {"network": "mine.networks:seeded"},
            [
                "argument 'seed' gets no value",
                "num_classes, image_size, channels, offset, rngs",
                "config.model.options",
            ],
        ),
        ({"network": "mine.networks:by_place"}, ["argument 'num_classes' gets no value", "called by name"]),
        ({"network": "mine.networks:Empty"}, ["has no __call__(self, x)"]),
        ({"network": "mine.networks:Mode"}, ["needs 'train' besides the images", "model.train() and model.eval()"]),
        (
            {"network": "mine.networks:Narrow"},
            ["fails on images of shape [2, 6, 4, 1]", "and (5,), in line 61 of", "networks.py"],
        ),
        (
            {"images": "mine.images:of_many"},
            ["argument 'count' gets no value; ", "with dir, image_size, seed only"],
        ),
        ({"network": "mine.networks:features"}, ["returns [2, 6, 4, 3] for images of shape [2, 6, 4, 1]", "[2, 2]"]),
        ({"network": "mine.networks:Deep"}, ["whose blocks is 2 layers stacked by nnx.vmap", "nnx.List"]),
        ({"network": "mine.networks:Counting"}, ["changes calls (Variable)", "nnx.BatchStat"]),
        (
            {"model__options": (("depth", 3),)},
            ["no argument 'depth'", "num_classes, image_size, channels, rngs"],
        ),
        ({"model__options": ("depth",)}, ["config.model.options", "(name, value) pairs"]),
        ({"model__dtype": "bfloat16"}, ["config.model.dtype is 'bfloat16'", "model.options"]),
        ({"model__exclude": ("haed",)}, ["no layer matches 'haed'", "conv, head"]),
        ({"network": "mine.networks:Linear", "model__exclude": ("head",)}, ["DCT plus Sparse layers already"]),
        ({"network": "mine.networks:Linear", "model__alpha_init": 0.5}, ["model.alpha_init is 0.5", "leave it at 1.0"]),
        ({"network": "lenet", "model__options": (("depth", 3),)}, ["config.model.options", "lenet has none"]),
        ({"images": "mine.images:one"}, ["returns int", "(train_images, train_labels)"]),
        ({"images": "mine.images:ragged"}, ["returns lists that are no arrays", "(train_images, train_labels)"]),
        ({"images": "mine.images:floats"}, ["train_images is float64 [4, 2, 2, 3]", "uint8"]),
        ({"images": "mine.images:from_one"}, ["class 0 has no training images", "subtract the smallest label"]),
        ({"images": "mine.pictures:load"}, ["config.data.name is 'mine.pictures:load'", "no module"]),
        ({"data__mean": (0.5, 0.5, 0.5), "data__std": (1.0, 1.0, 1.0)}, ["config.data.mean", "1 channels"]),
    ],
)
def test_mistakes(fields, parts):
    message = message_of(**fields)
    for part in parts:
        assert part in message, message
    assert not Path("refused/config.json").exists()


def test_what_is_read_is_printed_and_a_class_without_images_is_warned_of(folder, capsys, caplog):
    load_data(config_of())
    said = "mine.images:load: 40 training and 20 test images of 2 classes, 4 x 6 pixels, grey\n"
    assert capsys.readouterr().out == said and caplog.text == ""
    load_data(config_of(images="mine.images:named"))
    assert "mine.images:named has no training images of 1 of its 3 classes (owl), and " in caplog.text


@pytest.mark.usefixtures("small")
def test_the_example(tmp_path):
    config = experiment.get_config()
    config.num_epochs, config.tensorboard, config.execution.keep_memory = 5, False, False
    assert run(config, tmp_path / "mixer")["test_accuracy_final"] > 0.6
