"""What a network in training stores and sends, in bytes, beside the same network trained dense."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import optax

from dctps_jax.aligned import aligned

Account = dict[str, dict[str, int]]

NAMES = {
    "parameters": "parameters",
    "supports": "masks or positions",
    "optimizer_state": "optimiser state",
    "gradients": "gradients sent a step",
    "checkpoint": "checkpoint",
}


def storage_account(
    state: Any, stored: Any, kernel_shapes: Mapping[str, tuple[int, ...]], optimizer: optax.GradientTransformation
) -> Account:
    """Return the bytes of ``state`` by kind, each ``{"this": …, "dense": …}``.

    ``state`` is a training state in its form for training, ``stored`` the same in its form for checkpoints.
    ``kernel_shapes`` are the kernel shapes of the layers with a support. The dense network has no α, no support, and
    trains all weights with the same optimiser. The gradients are what each device sends in a step of data-parallel
    training: one number for each parameter. A checkpoint is counted before compression.
    """
    dense_params = _dense(state.params, kernel_shapes)
    dense_state = jax.eval_shape(optimizer.init, dense_params)
    statistics = num_bytes(state.batch_stats)
    this = {
        "parameters": num_bytes(state.params),
        "supports": num_bytes(state.supports),
        "optimizer_state": num_bytes(state.opt_state),
        "gradients": num_bytes(state.params),
        "checkpoint": num_bytes(stored),
    }
    dense = {
        "parameters": num_bytes(dense_params),
        "supports": 0,
        "optimizer_state": num_bytes(dense_state),
        "gradients": num_bytes(dense_params),
        "checkpoint": num_bytes(dense_params) + num_bytes(dense_state) + statistics,
    }
    return {kind: {"this": this[kind], "dense": dense[kind]} for kind in NAMES}


def storage_table(account: Account) -> str:
    """Return the account as aligned lines, in kB of 1,000 bytes."""
    rows = [("stored", "kB", "dense network, kB", "ratio")]
    for kind, both in account.items():
        ratio = f"1/{both['dense'] / both['this']:.3g}" if both["dense"] and both["this"] else ""
        rows.append((NAMES[kind], f"{both['this'] / 1000:,.1f}", f"{both['dense'] / 1000:,.1f}", ratio))
    return "\n".join(aligned(rows, left=1))


def num_bytes(tree: Any) -> int:
    """Return the bytes of all arrays in ``tree``."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def file_bytes(folder: Path) -> int:
    """Return the bytes of all files below ``folder``."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _dense(params: Any, kernel_shapes: Mapping[str, tuple[int, ...]], above: tuple[str, ...] = ()) -> Any:
    """Return the abstract parameters of the dense network: whole kernels, no α.

    An α lies beside a kernel, also in layers without a support. Any other ``alpha`` is a parameter of the user's.
    """
    dense = {}
    for name, node in params.items():
        if isinstance(node, dict):
            dense[name] = _dense(node, kernel_shapes, (*above, str(name)))
        elif name != "alpha" or "kernel" not in params:
            shape = kernel_shapes.get(".".join(above), node.shape) if name == "kernel" else node.shape
            dense[name] = jax.ShapeDtypeStruct(shape, node.dtype)
    return dense
