"""1 % and 0.1 % of the weights, with the DCT offset and without: for the larger networks, on an accelerator.

python sweep.py --config configs/vgg19_cifar10.py --sweep configs/sweeps/offset.py --workdir sweeps/vgg19

results/vgg19_cifar10_offset/ was made with --config.num_epochs=12; without it a run has the paper's 200 epochs.
"""


def get_sweep():
    return {"pruning.density": (0.01, 0.001), "model.offset": ("dct", None), "seed": (0,)}
