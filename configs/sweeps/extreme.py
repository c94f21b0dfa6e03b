"""0.01 % and 0.1 % of the weights of a deep network, with the DCT offset and without, two seeds.

python sweep.py --config configs/vgg19_cifar10.py --sweep configs/sweeps/extreme.py --workdir sweeps/vgg11 \\
    --config.model.name=vgg11 --config.num_epochs=40

results/vgg11_cifar10_extreme/ has the four runs with seed 0, from a folder of images: 68.7 % with the offset and 60.1 %
without at 0.1 %, 52.7 and 10.0 % at 0.01 %, each in 27 to 129 minutes on two CPU cores. One more is of train.py with
--config.optimizer.kernel_rate=0. Seed 1 was not run.
"""


def get_sweep():
    # The seed is the outer loop: a sweep that is stopped has both densities of the first seed.
    return {"seed": (0, 1), "pruning.density": (0.0001, 0.001), "model.offset": ("dct", None)}
