"""The results of one seed: the tests of its states, and everything that ``results.json`` says of the run."""

import logging
from collections.abc import Mapping
from typing import Any

import jax

from dctps_jax import pruning
from dctps_jax.accounts.storage import file_bytes, storage_account
from dctps_jax.distributed.agreement import on_first
from dctps_jax.runs.bound_data import check_same_data
from dctps_jax.runs.summary import environment
from dctps_jax.training.loop import Programs, means
from dctps_jax.training.progress import doing
from dctps_jax.training.seed_checkpoints import SeedCheckpoints
from dctps_jax.training.state import TrainState

logger = logging.getLogger("dctps_jax")


def measure_on_test_images(
    programs: Programs, test: tuple[Any, Any], state: TrainState, store: SeedCheckpoints, best_epoch: Mapping[str, Any]
) -> dict[str, float | None]:
    """Test the last state, the one of ``best_epoch`` (a row of the metrics), and the average of the weights if any.

    A best state whose checkpoint is lost has no accuracy: None.
    """
    with doing("testing"):
        loss, accuracy = means(programs.evaluate(state, *test))
    best_accuracy = None
    saved = store.checkpoints.newest_for_all("best")
    if saved is not None and saved.step == best_epoch["step"]:
        workdir = store.checkpoints.folder.parent
        on_first(check_same_data, workdir, store.data.described, saved.record.get("data"))
        best_state = store.restore_best(saved, state)
        with doing("testing the best epoch"):
            best_accuracy = means(programs.evaluate(best_state, *test))[1]
    else:
        number = best_epoch["epoch"]
        logger.warning("the checkpoint of the best epoch %d is lost; test_accuracy_best is left out", number)
    tested = {
        "test_accuracy_best": best_accuracy,
        "test_accuracy_final": accuracy,
        "test_loss_final": loss,
    }
    if store.network.setup.spec.ema_decay:
        tested["test_accuracy_ema"] = means(programs.evaluate(state.averaged(), *test))[1]
    return tested


def describe_network(config: Any, step: int, state: TrainState, store: SeedCheckpoints) -> dict[str, Any]:
    """Return the densities, sizes and operations of the trained network, as ``results.json`` has them."""
    network, settings = store.network, config.pruning
    weights, stored_shapes = network.weights, store.shapes_of_stored(step, state)
    return {
        "density_asked": pruning.density_asked(settings.method, settings.density, settings.rewind_epoch),
        "density": weights.density_at(step),
        "density_of_all_parameters": network.density_of_all_parameters,
        "layer_densities": {path: weights.last[path] / size for path, size in weights.sizes.items()},
        "trainable_parameters": num_trainable(stored_shapes),
        "storage_bytes": storage_account(state, stored_shapes, network.setup.graphs.shapes, network.setup.optimizer),
        "flops": network.flops,
        "step": step,
        "checkpoint_file_bytes": on_first(file_bytes, store.checkpoints.folder / "latest" / str(step)),
    }


def describe_run(config: Any, store: SeedCheckpoints, compile_seconds: float) -> dict[str, Any]:
    """Return what ``results.json`` says of the seed, the data and the machine."""
    dataset, normalization = store.data.dataset, store.network.setup.spec.normalization
    return {
        **({} if config.model.dtype == "auto" else {"dtype": config.model.dtype}),
        "seed": config.seed,
        "data": {
            "class_names": list(dataset.class_names),
            "image_size": store.data.described["image_size"],
            "mean": list(map(float, normalization.mean)),
            "std": list(map(float, normalization.std)),
            "fingerprint": dataset.fingerprint,
            "fit": config.data.fit,
        },
        **store.network.described,
        "compile_seconds": compile_seconds,
        "environment": environment(),
    }


def num_trainable(stored: TrainState) -> int:
    """Return how many parameters a stored state trains; its shapes will do."""
    return sum(leaf.size for leaf in jax.tree.leaves(stored.params))
