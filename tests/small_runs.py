"""Runs of a few seconds: 200 digits, LeNet-5 with 5 % of its weights, one of the fake devices."""

import dataclasses
import json

import jax

from configs import lenet_digits
from dctps_jax import data
from dctps_jax.ops import target
from dctps_jax.optimizers import make_optimizer
from dctps_jax.runs.checkpoint import as_tree
from dctps_jax.runs.checkpoint_files import read_checkpoint
from dctps_jax.training.placement import place_on
from dctps_jax.training.run import run

NUM_TRAIN = 180  # of 200 images, the other 20 validate
BATCH_SIZE = 32
STEPS_PER_EPOCH = 5


def small_digits():
    digits = data.load("digits")
    parts = digits.train_images[:200], digits.train_labels[:200], digits.test_images[:50], digits.test_labels[:50]
    return data.Dataset("digits", *parts, digits.class_names)


def normalized_digits():
    """Small digits whose mean and deviation do not depend on the split."""
    return dataclasses.replace(small_digits(), mean=(0.3, 0.3, 0.3), std=(0.4, 0.4, 0.4))


def small_config(**overrides):
    """The config of a small run; fields by dotted path, with `__` for the dot."""
    config = lenet_digits.get_config()
    config.num_epochs = 2
    config.batch_size = BATCH_SIZE
    config.pruning.density = 0.05
    config.optimizer.learning_rate = 0.001
    config.tensorboard = False
    config.execution.keep_memory = False  # a setting of the whole process
    config.data.augment = True
    config.update_from_flattened_dict({field.replace("__", "."): value for field, value in overrides.items()})
    return config


def small_run(workdir, **overrides):
    return run(small_config(**overrides), workdir)


def make_optimizer_of(config, learning_rate):
    options = config.optimizer
    return make_optimizer(
        options.name, learning_rate, momentum=options.momentum, weight_decay=options.weight_decay, fixup=False
    )


def placement_on(num_devices, shards=1):
    return place_on(jax.devices()[:num_devices], shards)


def train_on_one_device(patch):
    """Runs train on the first of the devices that the tests pretend to have."""
    patch.setattr(target, "training_devices", lambda: jax.devices()[:1])


def rows(workdir):
    """The rows of metrics.jsonl without the speed, the only number that may differ from run to run."""

    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")

    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    parsed = [json.loads(line, parse_constant=refuse) for line in lines]
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in parsed]


def results(workdir):
    found = json.loads((workdir / "results.json").read_text())
    return {name: value for name, value in found.items() if not name.endswith(("_seconds", "_file_bytes", "digests"))}


def steps(workdir, kind="latest"):
    folder = workdir / "checkpoints" / kind
    return sorted(int(entry.name) for entry in folder.iterdir()) if folder.exists() else []


def arrays(workdir, kind="latest", step=None):
    """The arrays of a checkpoint by name."""
    step = steps(workdir, kind)[-1] if step is None else step
    return read_checkpoint(workdir / "checkpoints" / kind / str(step)).arrays


def assert_same_end(workdir, expected):
    """`workdir` holds the same run as `expected`, bit for bit."""
    assert rows(workdir) == rows(expected)
    assert results(workdir) == results(expected)
    for kind in ("latest", "best"):
        assert steps(workdir, kind) == steps(expected, kind)
        found, wanted = arrays(workdir, kind), arrays(expected, kind)
        assert found.keys() == wanted.keys()
        for name, array in wanted.items():
            assert array.dtype == found[name].dtype and array.tobytes() == found[name].tobytes(), (kind, name)


def restored(checkpoints, template):
    """(step, tree) of the newest sound checkpoint, as a run that goes on reads it; None without one."""
    saved = checkpoints.newest("latest")
    return None if saved is None else (saved.step, as_tree(saved, template, checkpoints.folder))
