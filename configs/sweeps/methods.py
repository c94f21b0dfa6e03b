"""Methods of pruning at initialisation, and RigL, at two densities, with the DCT offset and without, two seeds each.

python sweep.py --config configs/lenet_cifar10.py --sweep configs/sweeps/methods.py --workdir sweeps/methods

results/lenet_cifar10_methods/ was made with --config.num_epochs=15; without it a run has the paper's 200 epochs.
"""


def get_sweep():
    common = {"pruning.density": (0.1, 0.01), "model.offset": ("dct", None), "seed": (0, 1)}
    return [
        {"pruning.method": ("epf", "erk", "snip", "force", "synflow"), **common},
        {"pruning.method": ("epl",), "sparse_training.method": ("rigl",), **common},
    ]
