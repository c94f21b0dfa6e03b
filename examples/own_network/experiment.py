"""A network and images of one's own, without a line in the package.

cd examples/own_network
dctps-train --config experiment.py --workdir runs/mixer
dctps-train --config experiment.py --workdir runs/narrow "--config.model.options=(('width', 32), ('depth', 2))"
"""

from dctps_jax.defaults import get_config as get_defaults


def get_config():
    config = get_defaults()
    config.num_epochs = 20
    config.batch_size = 64
    config.model.name = "examples.own_network.mixer:build"
    config.model.options = (("width", 64), ("depth", 2))
    config.model.exclude = ("head",)
    config.data.name = "examples.own_network.digits:load"
    config.data.augment = False
    config.pruning.density = 0.1
    config.optimizer.learning_rate = 0.01
    return config
