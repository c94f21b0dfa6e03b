"""Methods of pruning at initialisation, and RigL, at two densities, with the DCT offset and without, two seeds each.

python sweep.py --config configs/lenet_cifar10.py --sweep configs/sweeps/methods.py --workdir sweeps/methods

Seen: 15 epochs (--config.num_epochs=15), at 1 % between 26.3 % (epf) and 35.5 % (RigL) with the offset
(results/lenet_cifar10_methods/; docs/results.md has the table), each in 2 to 33 minutes on one or two busy CPU cores.
The 200 epochs of the config: not run.
"""


def get_sweep():
    common = {"pruning.density": (0.1, 0.01), "model.offset": ("dct", None), "seed": (0, 1)}
    return [
        {"pruning.method": ("epf", "erk", "snip", "force", "synflow"), **common},
        {"pruning.method": ("epl",), "sparse_training.method": ("rigl",), **common},
    ]
