"""From a config to a network with its support."""

import numpy as np
import pytest

from dctps_jax.kernels import KernelLayer
from dctps_jax.models import prunable_layers
from dctps_jax.training.setup import build_sparse_model
from tests.training.small_runs import small_config


@pytest.mark.parametrize("form", ["auto", "compact", "masked"])
def test_only_the_masked_form_makes_dense_kernels_of_a_random_support(form, monkeypatch):
    made, original = [], KernelLayer.sparse_kernel

    def record(self):
        made.append(self.kernel_shape)
        return original(self)

    monkeypatch.setattr(KernelLayer, "sparse_kernel", record)
    model, supports = build_sparse_model(small_config(execution__form=form), 10, 32, None, None)
    assert len(made) == (5 if form == "masked" else 0)
    for path, layer in prunable_layers(model).items():
        assert (layer.support is None) == (form == "masked")
        kept = np.flatnonzero(layer.mask[...]) if form == "masked" else layer.support[...]
        np.testing.assert_array_equal(kept, supports[path])
