"""1 % and 0.1 % of the weights, with the DCT offset and without: for the larger networks, on an accelerator.

python sweep.py --config configs/vgg19_cifar10.py --sweep configs/sweeps/offset.py --workdir sweeps/vgg19

Seen: VGG19, 12 epochs (--config.num_epochs=12), one seed: 71.1 % with the offset and 75.7 % without at 1 %, 48.3 and
55.1 % at 0.1 % (results/vgg19_cifar10_offset/). The 200 epochs of the config: not run.
"""


def get_sweep():
    return {"pruning.density": (0.01, 0.001), "model.offset": ("dct", None), "seed": (0,)}
