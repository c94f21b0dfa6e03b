"""Every number of the original's forward and backward passes, in float64 and float32."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dctps_jax.ops import convolution
from tests import reference_data as reference
from tests.native import jit_unoptimised

pytestmark = pytest.mark.usefixtures("original_offset")

ENTRIES = {entry["file"]: entry for entry in reference.index("parity_index")}


def run(entry, stored, mode, dtype):
    """Return loss, logits, gradients and the state after one forward and backward pass, by the reference's keys."""
    model = reference.model_for(entry, stored, "param/", dtype)
    model.train() if mode == "train" else model.eval()
    graphdef, params, stats, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    params, stats, rest = (nnx.to_pure_dict(part) for part in (params, stats, rest))

    @(jit_unoptimised if dtype == np.float64 else jax.jit)
    @partial(jax.value_and_grad, has_aux=True)
    def loss_fn(params):
        network = nnx.merge(graphdef, params, stats, rest)
        logits = network(jnp.asarray(stored["x"], dtype))
        after = nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))
        return reference.cross_entropy(logits, stored["y"]), (logits, after)

    (loss, (logits, after)), gradients = loss_fn(params)
    return (
        loss,
        logits,
        *(
            reference.numbers_of(nnx.merge(graphdef, *parts, rest), entry)
            for parts in ((gradients, stats), (params, after))
        ),
    )


def compared_gradients(entry, stored, mode, gradients):
    """Yield (key, ours, the original's in float64) for every gradient that is stored."""
    masks = reference.masks_of(entry, stored)
    for key, gradient in gradients.items():
        if not key.endswith(("/mean", "/var")):
            try:
                expected = reference.filled_up(stored, f"{mode}/grad_f64/", key, masks)
            except KeyError:  # eval gradients that equal those of train are not stored
                assert mode == "eval"
                continue
            yield key, gradient.reshape(expected.shape), expected


def rounding_of(values):
    """Some float64 results are stored as float32, rounded by 6e-8."""
    return 1e-9 if values.dtype == np.float64 else 1.2e-7


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", ENTRIES)
def test_float64_forward_and_gradients_equal_the_original(name, mode):
    entry, stored = ENTRIES[name], reference.arrays(name)
    with jax.enable_x64(True):
        loss, logits, gradients, after = run(entry, stored, mode, np.float64)
    np.testing.assert_allclose(loss, stored[f"{mode}/loss_f64"], rtol=1e-9)
    expected = stored[f"{mode}/logits_f64"]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=rounding_of(expected) * np.abs(expected).max())
    # Gradients that are zero in theory (a bias that BatchNorm removes) are rounding noise of the whole gradient.
    noise = 1e-12 * max(np.abs(gradient).max() for gradient in gradients.values())
    for key, gradient, expected in compared_gradients(entry, stored, mode, gradients):
        atol = rounding_of(expected) * np.abs(expected).max() + noise
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=atol, err_msg=key)
    if mode == "train":
        for key in (key for key in after if key.endswith("/mean")):
            expected = stored[f"train/bn_after_f64/{key}"]
            atol = rounding_of(expected) * np.abs(expected).max()
            np.testing.assert_allclose(after[key], expected, rtol=0, atol=atol, err_msg=key)


@pytest.mark.parametrize(
    ("name", "narrow"),
    [
        ("parity_lenet_None", True),
        ("parity_lenet_dct", True),
        ("parity_fixup_resnet20_dct", True),
        ("parity_resnet18_ip8_dct", True),
        ("parity_resnet18_ip8_dct", False),
    ],
)
def test_float32_is_as_close_to_float64_as_the_original_is(name, narrow, monkeypatch):
    if not narrow:  # the native convolution instead of several columns at a time
        monkeypatch.setattr(convolution, "MAX_NARROW_WEIGHTS", 0)
    # Another order of summation rounds differently: the original's own deviation, times a small factor, is the scale.
    entry, stored = ENTRIES[name], reference.arrays(name)
    _, logits, gradients, _ = run(entry, stored, "train", np.float32)
    exact = stored["train/logits_f64"]
    assert logits.dtype == jnp.float32 and all(gradient.dtype == np.float32 for gradient in gradients.values())
    assert np.abs(logits - exact).max() / np.abs(exact).max() < 5 * entry["train"]["logits_rel_f32_vs_f64"]
    too_far = keys_too_far(entry, stored, gradients)
    if too_far and name == "parity_resnet18_ip8_dct":
        # An activation of its first block is below zero by less than a rounding. Some processors, and some ways of
        # computing a convolution, round it to above zero, where it has another gradient: that of images with a rounding
        # more.
        rounded = (gradients_of_rounded_images(entry, stored, seed) for seed in range(6))
        too_far = all(keys_too_far(entry, stored, gradients, others) for others in rounded)
    assert not too_far


def gradients_of_rounded_images(entry, stored, seed):
    """Return the gradients in float64 of images with noise of a rounding's size."""
    noise = 3e-7 * np.random.default_rng(seed).normal(size=stored["x"].shape) * np.abs(stored["x"]).max()
    with jax.enable_x64(True):
        _, _, gradients, _ = run(entry, {**stored, "x": stored["x"] + noise}, "train", np.float64)
    return gradients


def keys_too_far(entry, stored, gradients, others=None):
    """Return the names of float32 gradients that are further from float64's than rounding explains.

    Those in float64 are the original's, or ``others``.
    """
    listed, keys = entry["train"], []
    for key, gradient, expected in compared_gradients(entry, stored, "train", gradients):
        if others is not None:
            expected = np.asarray(others[key]).reshape(expected.shape)
        # Gradients that nearly cancel, as of α before a BatchNorm, are rounding noise of the whole gradient.
        allowed = 5 * listed["grad_rel_f32_vs_f64_worst"] * np.abs(expected).max() + 1e-6 * listed["grad_global_l2_f64"]
        if not np.abs(gradient - expected).max() < allowed:
            keys.append(key)
    return keys
