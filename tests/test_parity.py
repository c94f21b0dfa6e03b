"""Every number of the original's forward and backward passes, in float64 and float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import reference_data as reference

ENTRIES = {entry["file"]: entry for entry in reference.index("parity_index")}


def loss_logits_gradients(entry, stored, mode, dtype):
    model = reference.model_for(entry, stored, "param/", dtype)
    model.train() if mode == "train" else model.eval()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)

    @jax.jit
    def loss_fn(params):
        network = nnx.merge(graphdef, params, rest)
        logits = network(jnp.asarray(stored["x"], dtype))
        return reference.cross_entropy(logits, stored["y"]), (logits, nnx.to_pure_dict(nnx.state(network, nnx.BatchStat)))

    (loss, (logits, stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    after = reference.numbers_of(nnx.merge(graphdef, params, rest | stats if not stats else _update(rest, stats)), entry)
    grads = reference.numbers_of(nnx.merge(graphdef, grads, rest), entry)
    return loss, logits, grads, after


def _update(tree, update):
    return tree | {key: _update(tree[key], value) if isinstance(value, dict) else value for key, value in update.items()}


def tolerance_of(values, tight):
    """float64 results that are stored as float32 are rounded to 6e-8."""
    return tight if values.dtype == np.float64 else max(tight, 1.2e-7)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", ENTRIES)
def test_float64_forward_and_gradients_equal_the_original(name, mode):
    entry, stored = ENTRIES[name], reference.arrays(name)
    with jax.enable_x64(True):
        loss, logits, grads, after = loss_logits_gradients(entry, stored, mode, np.float64)
    expected = stored[f"{mode}/logits_f64"]
    np.testing.assert_allclose(loss, stored[f"{mode}/loss_f64"], rtol=1e-9)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance_of(expected, 1e-9) * np.abs(expected).max())
    masks = reference.masks_of(entry, stored)
    compared = 0
    # Biases that a BatchNorm follows have a gradient of zero in theory; the whole gradient is the scale for those.
    largest = max(np.abs(grad).max() for grad in grads.values())
    for key, grad in grads.items():
        if key.endswith(("/mean", "/var")) or f"{mode}/grad_f64/{key}" not in stored and f"{mode}/grad_f64/{key}_nz" not in stored:
            continue
        expected = reference.filled_up(stored, f"{mode}/grad_f64/", key, masks)
        np.testing.assert_allclose(
            grad.reshape(expected.shape), expected, err_msg=key, rtol=0,
            atol=tolerance_of(expected, 1e-9) * np.abs(expected).max() + 1e-12 * largest,
        )  # fmt: skip
        compared += 1
    if mode == "train":
        assert compared == sum(not key.endswith(("/mean", "/var")) for key in grads)
        batch = len(stored["x"])
        for key, value in after.items():
            if key.endswith("/mean"):
                np.testing.assert_allclose(value, stored[f"train/bn_after_f64/{key}"], rtol=1e-6, atol=1e-8, err_msg=key)
        assert batch == entry["batch"]


@pytest.mark.parametrize("name", ENTRIES)
def test_float32_logits_are_as_close_to_float64_as_the_originals(name):
    entry, stored = ENTRIES[name], reference.arrays(name)
    for mode in ("train", "eval"):
        loss, logits, grads, _ = loss_logits_gradients(entry, stored, mode, np.float32)
        assert logits.dtype == jnp.float32
        exact = stored[f"{mode}/logits_f64"]
        dev = np.abs(logits - exact).max() / np.abs(exact).max()
        print(name, mode, dev, entry[mode]["logits_rel_f32_vs_f64"])
        masks = reference.masks_of(entry, stored)
        worst = 0
        for key, grad in grads.items():
            if key.endswith(("/mean", "/var")) or f"{mode}/grad_f64/{key}" not in stored and f"{mode}/grad_f64/{key}_nz" not in stored:
                continue
            expected = reference.filled_up(stored, f"{mode}/grad_f64/", key, masks)
            a = np.abs(grad.reshape(expected.shape) - expected).max()
            m = entry[mode]["grad_maxabs_f32_minus_f64"].get(key)
            if m: worst = max(worst, a / max(m,1e-9))
        print("   worst grad ratio", worst)
