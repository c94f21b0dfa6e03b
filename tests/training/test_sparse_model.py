"""From a config to a network with its support."""

from typing import Any

import numpy as np
import pytest

from dctps_jax.errors import UserError
from dctps_jax.kernels import KernelLayer
from dctps_jax.models import prunable_layers
from dctps_jax.training.sparse_model import build_sparse_model
from tests.small_runs import small_config

UNUSED: Any = None  # the images and the spec of a step, which only scores need


@pytest.mark.parametrize("form", ["auto", "compact", "masked"])
def test_only_the_masked_form_makes_dense_kernels_of_a_random_support(form, monkeypatch, digits):
    made, original = [], KernelLayer.sparse_kernel

    def record(self):
        made.append(self.kernel_shape)
        return original(self)

    monkeypatch.setattr(KernelLayer, "sparse_kernel", record)
    config = small_config(execution__form=form, model__dtype="float32")
    model, supports = build_sparse_model(config, digits, UNUSED, UNUSED)
    assert len(made) == (5 if form == "masked" else 0)
    for path, layer in prunable_layers(model).items():
        assert (layer.support is None) == (form == "masked")
        kept = np.flatnonzero(layer.mask[...]) if form == "masked" else layer.support[...]
        np.testing.assert_array_equal(kept, supports[path])


def test_layers_take_the_method_of_the_first_pattern_that_matches(digits):
    config = small_config(execution__method="on_support", model__dtype="float32")
    config.execution.layer_methods = (("convs.0", "autodiff"), ("convs.*", "per_weight"))
    model, _ = build_sparse_model(config, digits, UNUSED, UNUSED)
    methods = {path: layer.method for path, layer in prunable_layers(model).items()}
    assert methods == {
        "convs.0": "autodiff",
        "convs.3": "per_weight",
        "convs.6": "per_weight",
        "fcs.0": "on_support",
        "fcs.2": "on_support",
    }
    config.execution.layer_methods = (("conv1", "autodiff"),)
    with pytest.raises(UserError, match=r"layer_methods: no layer matches 'conv1'; the layers are: convs\.0, "):
        build_sparse_model(config, digits, UNUSED, UNUSED)
