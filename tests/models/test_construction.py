"""Networks are built with their supports: shapes first, without arrays, then layers that are complete."""

import math

import jax
import numpy as np
import pytest
from flax import nnx

from dctps_jax import UserError
from dctps_jax.models import MODELS, create_model, kernel_shapes, prunable_layers
from tests.small_networks import FAMILIES


@pytest.mark.usefixtures("small_families")
@pytest.mark.parametrize("name", FAMILIES)
def test_each_layer_gets_its_support(name):
    shapes = kernel_shapes(name, num_classes=3)
    supports = {path: np.arange(number) for number, path in enumerate(shapes)}
    backwards = dict(reversed(supports.items()))
    model = create_model(name, num_classes=3, offset="dct", rngs=nnx.Rngs(0), supports=backwards)
    layers = prunable_layers(model)
    assert {path: layer.kernel_shape for path, layer in layers.items()} == shapes
    assert {path: layer.support[...].size for path, layer in layers.items()} == {
        path: len(support) for path, support in supports.items()
    }


def test_shapes_are_found_without_an_array():
    before = {id(array) for array in jax.live_arrays()}
    shapes = kernel_shapes("resnet18", num_classes=7, width=8)
    assert shapes["conv1"] == (3, 3, 3, 8) and shapes["fc"] == (64, 7)
    assert all(array.size < 10 for array in jax.live_arrays() if id(array) not in before)


def test_supports_must_name_the_layers_of_the_network():
    with pytest.raises(UserError, match=r"supports names 1 layers; it must name these: convs\.0, "):
        create_model("lenet", num_classes=3, rngs=nnx.Rngs(0), supports={"conv1": np.arange(3)})


def test_supports_of_a_larger_network_are_refused():
    supports = {
        path: np.array([math.prod(shape) - 1]) for path, shape in kernel_shapes("resnet18", num_classes=3).items()
    }
    message = r"position 1727 for conv1, whose kernel has shape \(3, 3, 3, 4\); .* with the same options"
    with pytest.raises(UserError, match=message):
        create_model("resnet18", num_classes=3, width=4, rngs=nnx.Rngs(0), supports=supports)


def test_a_network_that_builds_its_layers_in_another_order_is_refused(monkeypatch):
    class Backwards(nnx.Module):
        MIN_IMAGE_SIZE = 1

        def __init__(self, parts, num_classes):
            last = parts.linear(4, num_classes)
            self.first = parts.linear(3, 4)
            self.last = last

    monkeypatch.setitem(MODELS, "backwards", Backwards)
    for build in (kernel_shapes, lambda *args, **named: create_model(*args, rngs=nnx.Rngs(0), **named)):
        with pytest.raises(TypeError, match="Backwards must build its layers in the order"):
            build("backwards", num_classes=2)
