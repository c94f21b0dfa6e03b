"""A deep narrow network, ResNet18 of width 16, at 1 % and 0.1 % of its weights, with the DCT offset and without.

python sweep.py --config configs/resnet18_cifar10.py --sweep configs/sweeps/deep.py --workdir sweeps/deep

results/resnet18_cifar10_deep/ was made with --config.num_epochs=3; without it a run has the paper's 200 epochs.
"""


def get_sweep():
    return {"model.width": (16,), "pruning.density": (0.01, 0.001), "model.offset": ("dct", None), "seed": (0,)}
