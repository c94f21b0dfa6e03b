r"""0.01 % of the weights, with the DCT offset and without: for the larger networks, on an accelerator.

python sweep.py --config configs/vgg19_cifar10.py --sweep configs/sweeps/lowest_density.py --workdir sweeps/vgg19_lowest

Seen: VGG19, 200 epochs, one seed: 67.2 % with the offset and 10.0 % without, in the last epoch.
The runs in results/vgg19_cifar10_lowest_density/ were made side by side on one GPU, from a folder of images. The run
with the offset was stopped after epoch 185 and went on by the same command.

XLA_PYTHON_CLIENT_PREALLOCATE=false python sweep.py --config configs/vgg19_cifar10.py \
    --sweep configs/sweeps/lowest_density.py --workdir sweeps/vgg19_lowest --jobs 2 \
    --config.data.name=image_folder --config.data.dir=cifar10-images --config.eval_batch_size=1000 \
    --config.steps_per_dispatch=351 --config.log_every_steps=351 --config.tensorboard=False
"""


def get_sweep():
    return {"pruning.density": (0.0001,), "model.offset": ("dct", None), "seed": (0,)}
