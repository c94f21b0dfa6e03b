"""A constant learning rate and a cosine after a warm-up, with averaged weights beside both, three seeds each.

python sweep.py --config configs/lenet_cifar10.py --sweep configs/sweeps/schedules.py --workdir sweeps/schedules \
    --config.num_epochs=15 --config.pruning.density=0.01
"""


def get_sweep():
    common = {"optimizer.ema_decay": (0.999,), "seed": (0, 1, 2)}
    return [
        {"optimizer.schedule": ("constant",), **common},
        {"optimizer.schedule": ("cosine",), "optimizer.warmup_epochs": (1.0,), **common},
    ]
