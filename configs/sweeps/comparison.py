"""Eleven ways to choose the weights, three densities, with the DCT offset and without, three seeds each.

python sweep.py --config configs/lenet_cifar10.py --sweep configs/sweeps/comparison.py --workdir sweeps/comparison \\
    --config.num_epochs=60

Seen, seed 0: at 1 %, with the offset from 33.4 % (epf) to 42.1 % (SET), without it from 10.0 to 44.5 % (gmp); at 0.1 %,
from 10.2 (magnitude, SynFlow) to 21.2 % (RigL), and from 10.0 to 15.4 % (gmp); at 10 %, from 50.0 (magnitude) to 57.2 %
(gmp), and from 50.7 (epf) to 59.2 % (gmp). Most runs took 3 to 22 minutes on a busy core, gmp up to 46
(results/lenet_cifar10_comparison/). Seeds 1 and 2 were not run.
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
