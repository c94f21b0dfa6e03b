"""Directories that stand for finished runs: all small files, no checkpoints."""

import json

import numpy as np

from dctps_jax.pruning import save_masks

# A quarter of the weights of each layer.
MASKS = {"conv": np.arange(16).reshape(2, 2, 1, 4) % 4 == 0, "fc": np.arange(8).reshape(4, 2) % 4 == 0}


def make_run(
    folder, *, density=0.01, offset="dct", method="epl", moves="static", seed=0, accuracy=0.5, finished=True, **data
):
    """Make the directory of a run of one epoch; `data` are more fields of `config.data`."""
    folder.mkdir(parents=True)
    config = {
        "seed": seed,
        "num_seeds": 1,
        "num_epochs": 1,
        "pruning": {"density": density, "method": method, "dense_layers": []},
        "sparse_training": {"method": moves},
        "model": {"offset": offset, "name": "lenet"},
        "data": {"name": "digits", **data},
    }
    (folder / "config.json").write_text(json.dumps(config))
    row = {
        "epoch": 1,
        "step": 9,
        "train_loss": 2.0,
        "val_loss": 2.1,
        "val_accuracy": accuracy,
        "learning_rate": 0.001,
        "images_per_second": 1000.0 + seed,
    }
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    results = {
        "best_val_accuracy": accuracy, "best_epoch": 1, "test_accuracy_best": accuracy,
        "test_accuracy_final": accuracy - 0.1, "density": min(1.0, density * 1.01),
        "density_asked": density, "trainable_parameters": 615, "seed": seed,
        "layer_densities": {path: float(mask.mean()) for path, mask in MASKS.items()},
        "storage_bytes": {kind: {"this": 1000, "dense": 9000} for kind in ("parameters", "supports", "optimizer_state")}
        | {"checkpoint": {"this": 12345, "dense": 99999}},
        "flops": {
            kind: {"dense": 2_500_000, "sparse": 20_000, "offset": 1_000}
            for kind in ("inference_of_an_image", "training_step")
        },
    }  # fmt: skip
    save_masks(folder / "masks.npz", MASKS)
    if finished:
        (folder / "results.json").write_text(json.dumps(results))
    return folder
