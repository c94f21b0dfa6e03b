"""Eleven ways to choose the weights, three densities, with the DCT offset and without, three seeds each.

python sweep.py --config configs/lenet_cifar10.py --sweep configs/sweeps/comparison.py --workdir sweeps/comparison \\
    --config.num_epochs=60
"""

METHODS = (
    {"pruning.method": ("epl", "epf", "erk", "magnitude", "snip", "grasp", "synflow", "force")},
    {"pruning.method": ("epl",), "sparse_training.method": ("rigl", "set", "gmp")},
)


def get_sweep():
    # Seed and density are the outer loops: a sweep that is stopped has all methods of the first seeds and densities.
    return [
        methods | {"seed": (seed,), "pruning.density": (density,), "model.offset": ("dct", None)}
        for seed in (0, 1, 2)
        for density in (0.01, 0.001, 0.1)
        for methods in METHODS
    ]
