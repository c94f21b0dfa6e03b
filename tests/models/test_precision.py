"""Gradients of every kind of network in half precision are those of float32, within a derived bound."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dctps_jax.models import create_model, prunable_layers
from dctps_jax.models.resnet import Bottleneck, ResNet
from dctps_jax.training.gradients import value_and_gradients
from dctps_jax.training.state import create_state
from dctps_jax.training.step_spec import LOSS_SCALES
from tests import small_networks
from tests.native import jit_unoptimised

BATCH, SIZES = 16, {"lenet": 32, "small_vgg": 16}
# Rounded arrays from the inputs of a layer to those of the next: kernel, product, BatchNorm, ReLU, residual sum.
ROUNDED = 5


@pytest.fixture(scope="module")
def families(small_families):
    """A small network of each family, and one of the blocks of ResNet50."""
    from dctps_jax import models

    with pytest.MonkeyPatch.context() as patch:
        bottleneck = partial(ResNet, block=Bottleneck, num_blocks=(1, 1, 1, 1), width=4)
        patch.setitem(models.MODELS, "small_bottleneck", bottleneck)
        yield


def random_number(path, array):
    """A parameter of a size at which every part of the network counts, also those that start at zero."""
    name, random = jax.tree_util.keystr(path), np.random.default_rng(sum(map(ord, jax.tree_util.keystr(path))))
    if "kernel" in name:
        return jnp.asarray(0.3 * random.normal(size=array.shape) / math.sqrt(math.prod(array.shape[:-1])), jnp.float32)
    is_scalar = array.ndim == 0 and "alpha" not in name  # of Fixup
    return jnp.asarray(("scale" in name) + 0.1 * random.normal(), jnp.float32) if is_scalar else array


def gradients_of(name, dtype):
    """Return the number of layers, and the gradients of all parameters on random images."""
    size = SIZES.get(name, 8)
    half = None if dtype == "float32" else jnp.dtype(dtype)
    model = create_model(name, num_classes=10, offset="dct", image_size=size, dtype=half, rngs=nnx.Rngs(0))
    graphs, state = create_state(model, optax.sgd(0.1))
    state = state._replace(params=jax.tree_util.tree_map_with_path(random_number, state.params))
    random = np.random.default_rng(0)
    images = jnp.asarray(random.normal(size=(BATCH, size, size, 3)), jnp.float32)
    labels = jnp.asarray(random.integers(0, 10, BATCH))

    @jit_unoptimised
    def compute(state):
        scale = LOSS_SCALES.get(dtype, 1.0)
        return value_and_gradients(graphs.train, state, {}, (images, labels), None, loss_scale=scale)

    (loss, (_, batch_stats)), gradients = compute(state)
    assert {leaf.dtype.name for leaf in jax.tree.leaves((loss, batch_stats, gradients))} == {"float32"}
    return len(prunable_layers(model)), np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradients)])


@pytest.mark.parametrize("name", [*small_networks.FAMILIES, "small_bottleneck"])
@pytest.mark.usefixtures("families")
def test_gradients_of_every_network(name):
    """The relative error of the whole gradient is at most E, with

        E² = 2·5L·u²/3 + (2/π) Σ_{l = 1…L} u √(5l/3)

    u is the unit roundoff, 2^-8 in bfloat16 and 2^-11 in float16, and L the number of layers.

    - Each layer rounds 5 arrays on the way forward and as many on the way back. To round a number changes it by a share
      that is spread evenly between −u and u, by √(u²/3) in the root of the mean square. Shares of different arrays are
      independent, so that the squares add up: 5l·u²/3 before layer l, 2·5L·u²/3 in all. Layers with BatchNorm pass a
      share on as it is.
    - That alone would be 3 % in the deepest network here. What counts is that ReLU lets other numbers through. An input
      of a ReLU that is normally distributed changes its sign with the probability σ/π if it is changed by a share
      σ = u √(5l/3). Half of the inputs go through, so that 2σ/π of the gradient's square is gained or lost. This is
      why the error falls with the root of u: float16, with u an eighth as large, has a third of bfloat16's error. The
      maximum of a window has such switches, too.
    """
    layers, exact = gradients_of(name, "float32")
    for dtype in ("bfloat16", "float16"):
        unit = float(jnp.finfo(dtype).eps) / 2
        switched = 2 / math.pi * sum(unit * math.sqrt(ROUNDED * layer / 3) for layer in range(1, layers + 1))
        bound = math.sqrt(2 * ROUNDED * layers * unit**2 / 3 + switched)
        _, found = gradients_of(name, dtype)
        error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
        print(name, dtype, layers, error, bound)
        assert unit / 4 < error < bound < 0.5, (dtype, error, bound)
