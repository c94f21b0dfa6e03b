"""The config of the paper's protocol, on which every config builds: all fields of :mod:`dctps_jax.fields`.

The protocol: 200 epochs of Adam (0.001) or SGD (0.1, momentum 0.9) at batch 128, L2 of 5e-4 added to the gradient of
every trainable parameter, 90 % of the training images to train and 10 % to validate, random crops and flips. SGD with
its schedule is

    --config.optimizer.name=sgd --config.optimizer.learning_rate=0.1 "--config.optimizer.milestones=(120, 160)"

:mod:`dctps_jax.config` checks a config by their declarations, and ``docs/configuration.md`` is made from them.
"""

from typing import Any

from ml_collections import ConfigDict, config_dict

from dctps_jax.field import Field
from dctps_jax.fields.data import DATA
from dctps_jax.fields.execution import EXECUTION
from dctps_jax.fields.model import MODEL
from dctps_jax.fields.optimizer import OPTIMIZER
from dctps_jax.fields.pruning import PRUNING
from dctps_jax.fields.run import RUN
from dctps_jax.fields.sparse_training import SPARSE_TRAINING

# Dotted name → declaration.
FIELDS: dict[str, Field] = RUN | MODEL | DATA | PRUNING | SPARSE_TRAINING | EXECUTION | OPTIMIZER


def get_config() -> Any:
    """Return the config of a run, every field at its default."""
    config: Any = ConfigDict()
    for name, field in FIELDS.items():
        section, _, last = name.rpartition(".")
        if section and section not in config:
            config[section] = ConfigDict()
        node = config[section] if section else config
        if field.optional:
            node[last] = config_dict.placeholder(type(field.default))  # takes None from the command line
        node[last] = field.default
    return config
