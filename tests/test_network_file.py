"""A network of one's own in one file, and back, into a network with other weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from dctps_jax import DCTpSLinear, UserError, convert, load_network, save_network
from dctps_jax.models import create_model
from dctps_jax.prunable import prunable_layers

X = jax.random.normal(jax.random.key(0), (4, 8))


class Net(nnx.Module):
    """A stack of three layers, a norm with statistics, dropout, and a head."""

    def __init__(self, rngs, width=8, param_dtype=jnp.float32):
        @nnx.split_rngs(splits=3)
        @nnx.vmap
        def stack(rngs):
            return nnx.Linear(8, 8, param_dtype=param_dtype, rngs=rngs)

        self.blocks = stack(rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(8, width, rngs=rngs)

    def __call__(self, x):
        run = nnx.scan(lambda x, block: nnx.relu(block(x)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return self.head(self.dropout(self.norm(run(x, self.blocks))))


def trained(seed, **options):
    """A network whose arrays are all its own."""
    model = convert(Net(nnx.Rngs(seed)), key=seed, **{"density": 0.3, "method": "uniform"} | options)
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    keys = jax.random.split(jax.random.key(seed), len(jax.tree.leaves(state)))
    leaves = [abs(jax.random.normal(key, leaf.shape)) for key, leaf in zip(keys, jax.tree.leaves(state), strict=True)]
    nnx.update(model, jax.tree.unflatten(jax.tree.structure(state), leaves))
    return model


def outputs(model):
    model.eval()
    return model(X)


@pytest.mark.parametrize(
    "options",
    [{}, {"offset": None}, {"offset": "hadamard", "alpha_trainable": False}, {"form": "masked"}, {"density": 1.0}],
)
def test_a_network_comes_back_into_one_with_other_weights(options, tmp_path):
    model, file = trained(1, **options), tmp_path / "net.safetensors"
    save_network(model, file)
    same_kind = {name: value for name, value in options.items() if name not in ("form", "density")}
    for form, density in (("compact", 0.1), ("masked", 0.5)):
        other = trained(2, **same_kind | {"form": form, "density": density})
        before = outputs(other)
        loaded = load_network(other, file)
        np.testing.assert_array_equal(outputs(loaded), outputs(model))
        np.testing.assert_array_equal(outputs(other), before)
        for path, layer in prunable_layers(loaded).items():
            saved = prunable_layers(model)[path]
            assert (layer.support is None, layer.mask is None) == (saved.support is None, saved.mask is None)
        state, expected = (nnx.state(net, nnx.Not(nnx.RngState)) for net in (loaded, model))
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), state, expected))


def test_only_the_sparse_part_is_stored(tmp_path):
    model = create_model("lenet", num_classes=10, offset="dct", rngs=nnx.Rngs(0))
    for layer in prunable_layers(model).values():
        layer.set_support(np.arange(0 if layer.kernel_shape[-1] == 10 else 7))
    save_network(model, tmp_path / "net.safetensors")
    tensors = load_file(tmp_path / "net.safetensors")
    assert {array.size for name, array in tensors.items() if name.endswith(("kernel", "support"))} == {0, 7}
    loaded = load_network(
        create_model("lenet", num_classes=10, offset="dct", rngs=nnx.Rngs(3)), tmp_path / "net.safetensors"
    )
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    np.testing.assert_array_equal(loaded(images), model(images))


def test_half_precision_parameters(tmp_path):
    model = convert(Net(nnx.Rngs(0), param_dtype=jnp.bfloat16), density=0.3, method="uniform", key=0)
    save_network(model, tmp_path / "net.safetensors")
    other = convert(Net(nnx.Rngs(1), param_dtype=jnp.bfloat16), density=0.1, method="uniform", key=0)
    loaded = load_network(other, tmp_path / "net.safetensors")
    assert loaded.blocks.kernel[...].dtype == jnp.bfloat16
    np.testing.assert_array_equal(outputs(loaded), outputs(model))
    with pytest.raises(UserError, match=r"blocks/alpha is bfloat16 of shape \(3,\) in .* and float32 of shape"):
        load_network(trained(1), tmp_path / "net.safetensors")


def test_other_networks_and_files_are_refused(tmp_path):
    file = tmp_path / "net.safetensors"
    save_network(trained(1), file)
    for model, message in (
        (trained(1, offset=None), r"the offset of blocks is dct in .* and None in the network; give a network that is"),
        (trained(1, exclude="head"), "head is a prunable layer in .*safetensors and not in the network"),
        (convert(Net(nnx.Rngs(0), width=5), density=0.3), r"the kernel_shape of head is \[8, 8\] in .* and \[8, 5\]"),
        (trained(1, alpha_trainable=False), None),
    ):
        if message is None:
            load_network(model, file)  # frozen or not, α has its value
            continue
        with pytest.raises(UserError, match=message):
            load_network(model, file)
    with pytest.raises(UserError, match="has no prunable layers"):
        save_network(Net(nnx.Rngs(0)), file)
    with pytest.raises(UserError, match=r"missing\.safetensors does not exist; write it again with save_network"):
        load_network(trained(1), tmp_path / "missing.safetensors")
    tensors = load_file(file)
    save_file(tensors | {"head/bias": tensors["head/bias"] + 1}, file, {"format": "dctps_jax.network"})
    with pytest.raises(UserError, match="is damaged"):
        load_network(trained(1), file)
    save_file(tensors, file, {"format": "another"})
    with pytest.raises(UserError, match="a safetensors file that save_network did not write"):
        load_network(trained(1), file)


def test_a_frozen_kernel_is_saved_too(tmp_path):
    base = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
    tuned = convert(base, offset="frozen", density=0.1, method="uniform", key=0)
    tuned.kernel[...] = jnp.ones_like(tuned.kernel[...])
    save_network(tuned, tmp_path / "net.safetensors")
    other = convert(nnx.Linear(8, 8, rngs=nnx.Rngs(1)), offset="frozen", density=0.5, method="uniform", key=0)
    np.testing.assert_array_equal(load_network(other, tmp_path / "net.safetensors")(X), tuned(X))
    with pytest.raises(UserError, match=r"is missing in .* and float32 of shape|is float32 of shape .* and missing"):
        load_network(DCTpSLinear(8, 8, offset=None, rngs=nnx.Rngs(0)), tmp_path / "net.safetensors")
