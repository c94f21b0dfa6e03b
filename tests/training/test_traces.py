"""Training traces of the original, step by step: losses, α and the final numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dctps_jax.training.optimizer import make_optimizer
from dctps_jax.training.step import create_state, merge, train_step
from tests import reference_data as reference

RUNS = [(entry, run) for entry in reference.index("trace_index") for run in entry["runs"]]


def run_trace(entry, run, dtype):
    stored = reference.arrays(entry["file"])
    settings = entry["runs"][run]
    optimizer = make_optimizer(
        settings["optimiser"], settings["lr"], momentum=0.9, weight_decay=settings["weight_decay"],
        fixup=entry["network"].startswith("fixup"),
    )  # fmt: skip
    graphs, state = create_state(reference.model_for(entry, stored, "init/", dtype), optimizer)
    images = reference.normalised(reference.arrays("images")["x"]).astype(dtype)

    @jax.jit
    def step(state, images, labels):
        return train_step(state, (images, labels), graph=graphs.train, optimizer=optimizer)

    losses = []
    for number in range(settings["steps"]):
        rows = stored["batch_rows"][number]
        state, metrics = step(state, jnp.asarray(images[rows]), jnp.asarray(stored["batch_labels"][number]))
        losses.append(float(metrics["loss"]))
    return stored, np.array(losses), reference.numbers_of(merge(graphs.train, state), entry)


@pytest.mark.parametrize(("entry", "run"), RUNS, ids=lambda value: value if isinstance(value, str) else value["file"])
def test_float64_trace_equals_the_original(entry, run):
    with jax.enable_x64(True):
        stored, losses, final = run_trace(entry, run, np.float64)
    np.testing.assert_allclose(losses, stored[f"{run}/loss_f64"], rtol=1e-7)
    masks = reference.masks_of(entry, stored)
    for key, value in final.items():
        expected = reference.filled_up(stored, f"{run}/final/", key, masks)
        # Stored as float32, hence 6e-8 on top of the 1e-7.
        atol = 2e-7 * np.abs(expected).max() + 1e-12
        np.testing.assert_allclose(value.reshape(expected.shape), expected, rtol=0, atol=atol, err_msg=key)


@pytest.mark.parametrize(("entry", "run"), RUNS, ids=lambda value: value if isinstance(value, str) else value["file"])
def test_float32_losses_stay_within_the_originals_own_deviation(entry, run):
    stored, losses, final = run_trace(entry, run, np.float32)
    deviation = np.abs(losses - stored[f"{run}/loss_f64"]).max()
    print(deviation, entry["runs"][run]["loss_absdiff_f32_f64_max"])
