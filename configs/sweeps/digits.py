"""The quick start with the DCT offset and without, ten seeds: five minutes on two CPU cores.

python sweep.py --config configs/lenet_digits.py --sweep configs/sweeps/digits.py --workdir sweeps/digits

results/lenet_digits/ has these twenty runs.
"""


def get_sweep():
    return {"model.offset": ("dct", None), "seed": tuple(range(10))}
