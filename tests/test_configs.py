"""The config files: each says how to run it, passes the check, and describes a network that can be built."""

import importlib
import math
import re
import runpy
from pathlib import Path

import jax
import pytest
from flax import nnx

from dctps_jax import data, defaults, models, pruning
from dctps_jax.config import check_config
from dctps_jax.runs.grid import plan_runs
from dctps_jax.training.sparse_model import build_model

FOLDER = Path(__file__).parents[1] / "configs"
RECIPES = sorted(f"recipes/{path.stem}" for path in (FOLDER / "recipes").glob("*.py") if path.stem != "__init__")
NAMES = [*sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__"), *RECIPES]
SWEEPS = sorted(path.stem for path in (FOLDER / "sweeps").glob("*.py") if path.stem != "__init__")


def load(name):
    return importlib.import_module(f"configs.{name.replace('/', '.')}")


def test_there_are_some():
    assert "lenet_digits" in NAMES and len(NAMES) > 5


@pytest.mark.parametrize("name", NAMES)
def test_header_has_the_command(name):
    header = load(name).__doc__ or ""
    assert f"python train.py --config configs/{name}.py" in header
    assert header.strip().splitlines()[0].endswith(".")


@pytest.mark.parametrize("name", NAMES)
def test_header_says_what_was_seen(name):
    header = load(name).__doc__ or ""
    assert re.search(r"^Not run|^Seen|test digits are right", header, re.MULTILINE)
    for folder in re.findall(r"results/\w+/", header):
        assert (FOLDER.parent / folder / "runs.jsonl").exists(), folder


@pytest.mark.parametrize("name", NAMES)
def test_config_is_sound_and_on_common(name):
    config, common = load(name).get_config(), defaults.get_config()
    check_config(config)
    assert config.to_dict().keys() == common.to_dict().keys()
    for group, fields in common.to_dict().items():
        if isinstance(fields, dict):
            assert config[group].to_dict().keys() == fields.keys(), group
    assert load(name).get_config().to_json() == config.to_json()


NUM_CLASSES = {"digits": 10, "synthetic": 10, "cifar10": 10, "cifar100": 100, "tiny_imagenet": 200}


@pytest.mark.parametrize("name", NAMES)
def test_network_and_support_can_be_built(name):
    config = load(name).get_config()
    if config.data.name not in NUM_CLASSES:
        pytest.skip("the number of classes comes with the images")
    config.model.dtype = "float32"
    num_classes, size = NUM_CLASSES[config.data.name], data.SOURCES[config.data.name].image_size or 32
    model = nnx.eval_shape(lambda: build_model(config, num_classes, size))
    shapes = {path: layer.kernel_shape for path, layer in models.prunable_layers(model).items()}
    total = sum(map(math.prod, shapes.values()))
    counts = pruning.allocate(
        shapes,
        config.pruning.density,
        config.pruning.method,
        dense_layers=config.pruning.dense_layers,
        layer_densities=config.pruning.layer_densities,
    )
    assert sum(counts.values()) == round(config.pruning.density * total)
    images = jax.ShapeDtypeStruct((2, size, size, 3), "float32")
    model.eval()
    assert nnx.eval_shape(lambda model, x: model(x), model, images).shape == (2, num_classes)


def test_names_agree_with_what_they_configure():
    for name in set(NAMES) - set(RECIPES):
        config = load(name).get_config()
        images = "imagenet" if config.data.name == "image_folder" else config.data.name
        assert name.startswith(config.model.name) and name.endswith(images), name


@pytest.mark.parametrize("name", SWEEPS)
def test_sweep_can_be_planned_by_the_command_in_its_header(name):
    source = (FOLDER / "sweeps" / f"{name}.py").read_text()
    command = re.search(
        rf"python sweep.py --config configs/(\w+)\.py --sweep configs/sweeps/{name}\.py --workdir sweeps/", source
    )
    assert command
    grids = runpy.run_path(str(FOLDER / "sweeps" / f"{name}.py"))["get_sweep"]()
    assert len(plan_runs(load(command[1]).get_config(), grids)) > 1
