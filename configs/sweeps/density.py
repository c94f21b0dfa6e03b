"""Accuracy against density, with the DCT offset and without, three seeds each.

python sweep.py --config configs/lenet_cifar10.py --sweep configs/sweeps/density.py --workdir sweeps/density

Seen, at 1 % with the offset and without: 31.2 and 11.9 % with --config.num_epochs=15 (results/lenet_cifar10_density/),
41.3 and 11.4 % with the 200 epochs of the config (results/lenet_cifar10_200_epochs/). docs/results.md has all
densities. A run took 2 to 15 minutes, and 7 to 157, on one or two busy CPU cores.
"""


def get_sweep():
    # The seed is the outer loop: a sweep that is stopped has all densities of the first seeds.
    return {
        "seed": (0, 1, 2),
        "pruning.density": (1.0, 0.1, 0.03, 0.01, 0.003, 0.001),
        "model.offset": ("dct", None),
    }
