"""A constant learning rate and a cosine after a warm-up, with averaged weights beside both, three seeds each.

python sweep.py --config configs/lenet_cifar10.py --sweep configs/sweeps/schedules.py --workdir sweeps/schedules \
    --config.num_epochs=15 --config.pruning.density=0.01

Seen: 31.1 ± 1.5 % with the constant rate, 20.7 ± 0.2 % with the cosine (results/lenet_cifar10_schedules/), each run in
4 to 5 minutes on a busy core.
"""


def get_sweep():
    common = {"optimizer.ema_decay": (0.999,), "seed": (0, 1, 2)}
    return [
        {"optimizer.schedule": ("constant",), **common},
        {"optimizer.schedule": ("cosine",), "optimizer.warmup_epochs": (1.0,), **common},
    ]
