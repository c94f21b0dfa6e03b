"""A deep narrow network, ResNet18 of width 16, at 1 % and 0.1 % of its weights, with the DCT offset and without.

python sweep.py --config configs/resnet18_cifar10.py --sweep configs/sweeps/deep.py --workdir sweeps/deep

Seen: three epochs (--config.num_epochs=3), one seed: 34.9 % with the offset and 46.5 % without at 1 %, 23.4 and 15.0 %
at 0.1 % (results/resnet18_cifar10_deep/). The 200 epochs of the config: not run.
"""


def get_sweep():
    return {"model.width": (16,), "pruning.density": (0.01, 0.001), "model.offset": ("dct", None), "seed": (0,)}
