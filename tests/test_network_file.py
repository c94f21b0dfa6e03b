"""A network of one's own in one file, and back, into a network with other weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType
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
        (
            trained(1, exclude="head"),
            r"layers are blocks, head in .* and blocks in the network; give .*, and conv",
        ),
        (Net(nnx.Rngs(0)), "the network has no prunable layers; convert it first"),
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
    with pytest.raises(
        UserError, match=r"missing\.safetensors does not exist; check the path, or write it with save_network"
    ):
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
    with pytest.raises(UserError, match=r"the offset of the network is frozen in .* and None in the network"):
        load_network(DCTpSLinear(8, 8, offset=None, rngs=nnx.Rngs(0)), tmp_path / "net.safetensors")


class Odd(nnx.Module):
    def __init__(self, **attributes):
        self.layer = DCTpSLinear(8, 8, rngs=nnx.Rngs(0))
        for name, value in attributes.items():
            setattr(self, name, value)


def test_what_a_file_cannot_hold(tmp_path):
    file = tmp_path / "net.safetensors"
    with pytest.raises(UserError, match="number is int, and a file holds arrays; make it one"):
        save_network(Odd(number=nnx.Variable(3)), file)
    linear = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    twice = nnx.Dict({"a/b": linear, "a": nnx.Dict({"b": nnx.Linear(2, 2, rngs=nnx.Rngs(1))})})
    with pytest.raises(UserError, match="two arrays of the network have the same path"):
        save_network(Odd(twice=twice), file)
    assert not file.exists()
    model = Odd(stream=nnx.Variable(jax.random.key(0)), bare=nnx.data(jnp.arange(3)))
    save_network(model, file)
    loaded = load_network(Odd(stream=nnx.Variable(jax.random.key(1)), bare=nnx.data(jnp.zeros(3, int))), file)
    assert loaded.stream[...] == jax.random.key(1) and list(loaded.bare) == [0, 1, 2]


@pytest.mark.parametrize("function", [save_network, load_network])
def test_networks_without_values(function, tmp_path):
    file = tmp_path / "net.safetensors"
    save_network(trained(1), file)
    with pytest.raises(UserError, match=f"has shapes and no arrays, .*; {function.__name__} needs the arrays"):
        function(nnx.eval_shape(lambda: trained(1)), file)
    with pytest.raises(UserError, match=f"{function.__name__} was called inside a traced function"):
        nnx.jit(lambda model: function(model, file) and None)(trained(1))


def test_arrays_lie_where_those_of_the_network_did(tmp_path):
    file = tmp_path / "net.safetensors"
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,), devices=jax.devices()[:2])
    divided = jax.device_put(X, jax.NamedSharding(mesh, jax.P("data")))
    model = convert(nnx.Linear(8, 8, rngs=nnx.Rngs(0)), density=0.3, key=0)
    save_network(model, file)
    loaded = load_network(convert(nnx.Linear(8, 8, rngs=nnx.Rngs(1)), density=0.1, key=1), file)
    # They are bound to no device, so that a program for several takes them, too.
    np.testing.assert_allclose(loaded(divided), model(X), atol=1e-6)
    replicated = jax.NamedSharding(mesh, jax.P())
    for form in ("compact", "masked"):
        other = convert(nnx.Linear(8, 8, rngs=nnx.Rngs(1)), density=0.1, key=1, form=form)
        nnx.update(other, jax.device_put(nnx.state(other), replicated))
        loaded = load_network(other, file)
        np.testing.assert_allclose(loaded(divided), model(X), atol=1e-6)
        assert loaded.kernel[...].sharding.is_equivalent_to(replicated, 1)
        sums = nnx.grad(lambda model: model(divided).sum())(loaded)
        assert sums.kernel[...].shape == loaded.kernel[...].shape
