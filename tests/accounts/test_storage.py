"""Bytes of a network in training, counted by hand for LeNet-5."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dctps_jax import DCTpSLinear
from dctps_jax.accounts.storage import NAMES, file_bytes, num_bytes, storage_account, storage_table
from dctps_jax.models import create_model, prunable_layers
from dctps_jax.optimizers import make_optimizer
from dctps_jax.pruning import apply_masks, prune
from dctps_jax.training.forms import to_compact
from dctps_jax.training.state import create_state

WEIGHTS, KEPT, LAYERS = 61_510, 615, 5
DENSE_CHECKPOINT = 4 * 3 * WEIGHTS + 4  # weights, two moments, Adam's count


@pytest.mark.parametrize("form", ["compact", "masked"])
def test_account_of_lenet(form):
    model = create_model("lenet", num_classes=10, offset="dct", rngs=nnx.Rngs(0))
    apply_masks(model, prune(model, "epl", 0.01, key=jax.random.key(0)), form)
    shapes = {path: layer.kernel_shape for path, layer in prunable_layers(model).items()}
    optimizer = make_optimizer("adam", 0.001, momentum=0.9, weight_decay=5e-4, fixup=False)
    graphs, state = create_state(model, optimizer)
    account = storage_account(state, to_compact(state, graphs.counts), shapes, optimizer)
    trained = KEPT + LAYERS if form == "compact" else WEIGHTS + LAYERS
    assert account["parameters"] == {"this": 4 * trained, "dense": 4 * WEIGHTS}
    assert account["gradients"] == account["parameters"]
    assert account["optimizer_state"] == {"this": 8 * trained + 4, "dense": 8 * WEIGHTS + 4}
    assert account["supports"] == {"this": 4 * KEPT if form == "compact" else WEIGHTS, "dense": 0}
    # Checkpoints are compact in both forms: values, moments, positions, α, Adam's count and the step.
    assert account["checkpoint"] == {"this": 4 * (4 * KEPT + 3 * LAYERS) + 8, "dense": DENSE_CHECKPOINT}
    assert len(storage_table(account).splitlines()) == len(NAMES) + 1
    assert "1/99.2" in storage_table(account) or form == "masked"


def test_bytes_of_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(bytes(10))
    (tmp_path / "file").write_bytes(bytes(5))
    assert file_bytes(tmp_path) == 15
    assert num_bytes({"a": jax.ShapeDtypeStruct((2, 3), "float32"), "b": jax.ShapeDtypeStruct((), "bool")}) == 25


def test_an_alpha_of_the_users_is_a_parameter_of_the_dense_network():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.sparse, self.dense = (DCTpSLinear(4, 4, use_bias=False, rngs=rngs) for _ in range(2))
            self.slopes = nnx.List([Slope()])

    class Slope(nnx.Module):
        def __init__(self):
            self.alpha = nnx.Param(jnp.ones(4))

    model = Net(nnx.Rngs(0))
    model.sparse.set_support(np.arange(3))
    optimizer = make_optimizer("adam", 0.001, momentum=0.9, weight_decay=5e-4, fixup=False)
    graphs, state = create_state(model, optimizer)
    account = storage_account(state, state, graphs.shapes, optimizer)
    assert account["parameters"] == {"this": 4 * (3 + 1 + 16 + 1 + 4), "dense": 4 * (16 + 16 + 4)}
