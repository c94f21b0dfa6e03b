"""Accuracy against density, with the DCT offset and without, three seeds each.

python sweep.py --config configs/lenet_cifar10.py --sweep configs/sweeps/density.py --workdir sweeps/density

results/lenet_cifar10_density/ was made with --config.num_epochs=15. Without it a run has the paper's 200 epochs:
results/lenet_cifar10_200_epochs/ has them.
"""


def get_sweep():
    # The seed is the outer loop: a sweep that is stopped has all densities of the first seeds.
    return {
        "seed": (0, 1, 2),
        "pruning.density": (1.0, 0.1, 0.03, 0.01, 0.003, 0.001),
        "model.offset": ("dct", None),
    }
