"""Sparse fine-tuning: K = W₀ + S, the file of S, and the same network again from its base and the file."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import save_file

from dctps_jax import DCTpSLinear, UserError, apply_delta, conversion_report, convert, export_delta, to_plain
from dctps_jax.accounts.flops import flops_account
from dctps_jax.kernels import Frozen, SparseParam
from dctps_jax.models import prunable_layers
from dctps_jax.ops.methods import METHODS
from dctps_jax.pruning import get_masks, prune

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(6, 6, 6, 2)), jnp.float32)
LABELS = jnp.asarray([0, 1, 2, 0, 1, 2])


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.up = nnx.ConvTranspose(4, 6, (2, 2), transpose_kernel=True, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 6, decode=False, rngs=rngs)
        self.places = nnx.Embed(9, 6, rngs=rngs)
        self.shared = nnx.Sequential(nnx.Linear(6, 6, rngs=rngs), nnx.relu)
        self.again = self.shared.layers[0]
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        x = self.up(nnx.relu(self.norm(self.conv(x)))).reshape(len(x), 9, 6) + self.places(jnp.arange(9)[None])
        return self.head(self.again(self.shared(self.attention(x))).mean(1))


@pytest.fixture(scope="module")
def base():
    return Net(nnx.Rngs(0))


def trained(model, num_steps=3):
    """Train in place; statistics of BatchNorm move, too."""
    optimizer = nnx.Optimizer(model, optax.adam(0.02), wrt=nnx.Param)
    model.train()

    @nnx.jit
    def step(model, optimizer):
        def loss_of(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(IMAGES), LABELS).mean()

        loss, gradients = nnx.value_and_grad(loss_of)(model)
        optimizer.update(model, gradients)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(num_steps)]
    model.eval()
    return losses, optimizer


def arrays(model):
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))


@pytest.mark.parametrize("form", ["compact", "masked"])
def test_a_network_begins_as_its_base_and_trains_the_sparse_part_alone(base, form):
    model = convert(base, offset="frozen", density=0.1, form=form)
    before = arrays(base)
    base.eval()
    model.eval()
    np.testing.assert_allclose(model(IMAGES), base(IMAGES), rtol=1e-5, atol=1e-6)
    parameters = nnx.to_flat_state(nnx.state(model, nnx.Param))
    assert {type(variable) for _, variable in parameters} == {SparseParam}
    frozen_before = arrays_of(model, Frozen)
    losses, optimizer = trained(model)
    assert losses[-1] < losses[0]
    size = sum(mask.sum() if form == "compact" else mask.size for mask in get_masks(model).values())
    moments = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(optimizer, nnx.OptState)) if leaf.ndim)
    assert moments == 2 * size
    jax.tree.map(np.testing.assert_array_equal, frozen_before, arrays_of(model, Frozen))
    jax.tree.map(np.testing.assert_array_equal, before, arrays(base))
    report = conversion_report(model)
    kept = sum(int(mask.sum()) for mask in get_masks(model).values())
    assert sum(row.trained for row in report.rows) == kept
    assert sum(row.parameters for row in report.rows) == sum(
        leaf.size for leaf in jax.tree.leaves(nnx.state(base, nnx.Param))
    )
    assert "K = W₀ + M⊙S" in str(report) and "frozen" in str(report)


def arrays_of(model, kind):
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, kind)))


@pytest.mark.parametrize(("form", "exclude"), [("compact", ()), ("masked", ("head",))])
def test_the_base_and_the_file_are_the_trained_network_again(base, form, exclude, tmp_path):
    model = convert(base, offset="frozen", density=0.05, form=form, exclude=exclude, embeddings=True)
    trained(model)
    file = tmp_path / "delta.safetensors"
    export_delta(model, file)
    again, plain = apply_delta(base, file), to_plain(model)
    for network in (base, again, plain):
        network.eval()
    np.testing.assert_array_equal(again(IMAGES), plain(IMAGES))
    np.testing.assert_allclose(again(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)
    assert np.abs(again(IMAGES) - base(IMAGES)).max() > 1e-3
    assert type(again.attention.query) is nnx.LinearGeneral and again.again is again.shared.layers[0]
    with safe_open(file, framework="numpy") as opened:
        names = set(opened.keys())
        whole = {name for name in names if name.startswith("whole/")}
        count = sum(opened.get_tensor(name).size for name in names if name.startswith("values/"))
    of_head = {"whole/head.kernel", "whole/head.bias"} if exclude else set()
    assert whole == {"whole/norm.mean", "whole/norm.var"} | of_head
    assert count == sum(int(mask.sum()) for mask in get_masks(model).values())


def test_a_file_of_a_large_network_has_kilobytes(tmp_path):
    base = nnx.Sequential(nnx.Linear(500, 500, rngs=nnx.Rngs(0)), nnx.Linear(500, 500, rngs=nnx.Rngs(1)))
    export_delta(convert(base, offset="frozen", density=0.001), tmp_path / "delta")
    assert (tmp_path / "delta").stat().st_size < 6000  # 500 weights of 500,000


def test_another_base_is_refused(base, tmp_path):
    file = tmp_path / "delta.safetensors"
    export_delta(convert(base, offset="frozen", density=0.05), file)
    apply_delta(Net(nnx.Rngs(0)), file)
    other, biased, renamed = Net(nnx.Rngs(1)), Net(nnx.Rngs(0)), Net(nnx.Rngs(0))
    biased.conv.bias.set_value(biased.conv.bias[...] + 1e-3)
    renamed.extra = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
    del renamed.norm
    for network in (other, biased, renamed, nnx.Linear(2, 3, rngs=nnx.Rngs(0))):
        with pytest.raises(UserError, match=r"delta.safetensors was written for another network than this one"):
            apply_delta(network, file)
    with pytest.raises(UserError, match="the network has DCT plus Sparse layers"):
        apply_delta(convert(base, density=0.1), file)


def test_files_that_are_no_delta(base, tmp_path):
    file = tmp_path / "delta.safetensors"
    with pytest.raises(UserError, match=r"delta.safetensors does not exist; write it again with export_delta"):
        apply_delta(base, file)
    with pytest.raises(UserError, match="is no file"):
        apply_delta(base, tmp_path)
    export_delta(convert(base, offset="frozen", density=0.05), file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    with pytest.raises(UserError, match="is no safetensors file, or a truncated one"):
        apply_delta(base, file)
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match="is damaged: its digest does not match"):
        apply_delta(base, file)
    save_file({"a": np.zeros(1)}, file, {"format": "pt"})
    with pytest.raises(UserError, match="a safetensors file that export_delta did not write"):
        apply_delta(base, file)
    save_file({"a": np.zeros(1)}, file, {"format": "dctps_jax.delta", "format_version": "2"})
    with pytest.raises(UserError, match="was written by a newer dctps_jax"):
        apply_delta(base, file)


def test_networks_that_have_no_delta(base, tmp_path):
    with pytest.raises(UserError, match="the network has no DCT plus Sparse layers"):
        export_delta(base, tmp_path / "delta")
    with pytest.raises(UserError, match=r"is no layer of convert\(model, offset=\"frozen\", …\)"):
        export_delta(convert(base, density=0.1), tmp_path / "delta")
    with pytest.raises(UserError, match="no is no directory"):
        export_delta(convert(base, offset="frozen", density=0.1), tmp_path / "no" / "delta")
    with pytest.raises(UserError, match=r"conv is a DCTpSConv already, .* give convert the network that to_plain"):
        convert(convert(base, density=0.1), offset="frozen", density=0.1)
    with pytest.raises(UserError, match="offset is 'dct'; a layer with a frozen kernel has none"):
        DCTpSLinear(2, 3, rngs=nnx.Rngs(0)).set_base(jnp.ones((2, 3)))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_adds_to_a_frozen_kernel(method):
    plain = nnx.Sequential(nnx.Conv(4, 8, (3, 3), rngs=nnx.Rngs(0)))
    model = convert(plain, offset="frozen", density=0.1)
    layer = prunable_layers(model)["layers.0"]
    layer.method = method
    layer.kernel.set_value(layer.kernel[...] + jnp.linspace(0.1, 0.5, layer.kernel[...].size))
    images = jax.random.normal(jax.random.key(0), (2, 6, 6, 4))
    same = to_plain(model)
    np.testing.assert_allclose(model(images), same(images), rtol=1e-4, atol=1e-5)

    def loss_of(network):
        return (network(images) ** 2).sum()

    expected = nnx.grad(loss_of)(same)["layers"][0]["kernel"][...].ravel()[layer.support[...]]
    np.testing.assert_allclose(nnx.grad(loss_of)(model)["layers"][0]["kernel"][...], expected, rtol=1e-3, atol=1e-3)


def test_supports_are_chosen_by_the_scores_of_the_trained_kernels(base):
    base.eval()
    model = convert(base, offset="frozen", density=0.1, method="magnitude")
    sizes = {path: np.abs(np.asarray(layer.effective_kernel())) for path, layer in prunable_layers(model).items()}
    masks = get_masks(model)
    assert min(sizes[path][masks[path]].min() for path in masks if masks[path].any()) >= max(
        sizes[path][~masks[path]].max() for path in masks
    )
    for method in ("snip", "fisher"):
        scored = convert(base, offset="frozen", density=0.1, method=method, batch=(IMAGES, LABELS))
        assert sum(int(mask.sum()) for mask in get_masks(scored).values()) == sum(
            int(mask.sum()) for mask in masks.values()
        )


def test_fisher_is_the_mean_of_the_squared_gradients_of_single_images(base):
    model = convert(base, offset=None, density=1.0)
    model.eval()

    def loss_of(model, image, label):
        return optax.softmax_cross_entropy_with_integer_labels(model(image[None]), label[None]).mean()

    total = sum(
        np.asarray(nnx.grad(loss_of)(model, image, label)["conv"]["kernel"][...], np.float64) ** 2
        for image, label in zip(IMAGES, LABELS, strict=True)
    )
    mask = prune(
        model,
        "fisher",
        0.25,
        key=jax.random.key(0),
        batch=lambda step: [(IMAGES[:4], LABELS[:4]), (IMAGES[4:], LABELS[4:])],
        scope="layer",
    )["conv"]
    np.testing.assert_array_equal(mask.ravel().nonzero()[0], np.sort(np.argsort(total.ravel())[-mask.sum() :]))


def test_operations_of_a_frozen_kernel_count():
    model = convert(nnx.Sequential(nnx.Linear(6, 4, rngs=nnx.Rngs(0))), offset="frozen", density=0.25)
    account = flops_account(model, (3, 6), {"layers.0": 6})
    assert account["inference_of_an_image"] == {"dense": 48, "sparse": 12, "offset": 48}


def test_what_lora_adds_is_trained_and_what_it_wraps_is_frozen(tmp_path):
    rngs = nnx.Rngs(0)
    base = nnx.Sequential(
        nnx.LoRA(4, 1, 4, base_module=nnx.Linear(4, 4, rngs=rngs), rngs=rngs), nnx.Linear(4, 3, rngs=rngs)
    )
    model = convert(base, offset="frozen", density=0.5)
    places = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    assert places == {"layers.0.lora_a", "layers.0.lora_b", "layers.1.kernel"}
    model.layers[0].lora_b.set_value(jnp.ones((1, 4)))
    export_delta(model, tmp_path / "delta")
    inputs = jnp.ones((2, 4))
    np.testing.assert_allclose(apply_delta(base, tmp_path / "delta")(inputs), model(inputs), rtol=1e-6)


def test_a_base_in_half_precision(tmp_path):
    """The base may be made in bfloat16 or cast to it afterwards; then S is in float32."""

    def tuned_of(base):
        tuned = convert(base, offset="frozen", density=0.3)
        for layer in prunable_layers(tuned).values():
            layer.kernel.set_value(layer.kernel[...] + jnp.asarray(0.123, layer.kernel[...].dtype))
        return tuned

    made = nnx.Linear(8, 4, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    cast = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
    cast.kernel.set_value(cast.kernel[...].astype(jnp.bfloat16))
    inputs = jax.random.normal(jax.random.key(0), (3, 8))
    for base in (made, cast):
        tuned = tuned_of(base)
        export_delta(tuned, tmp_path / "delta.safetensors")
        again = apply_delta(base, tmp_path / "delta.safetensors")
        np.testing.assert_array_equal(again.kernel[...], tuned.effective_kernel())
        np.testing.assert_array_equal(again(inputs), to_plain(tuned)(inputs))
        wide = nnx.clone(base)
        wide.kernel.set_value(wide.kernel[...].astype(jnp.float32))
        with pytest.raises(UserError, match=r"for a network in .*bfloat16.*, but this one is in .*float32"):
            apply_delta(wide, tmp_path / "delta.safetensors")


@pytest.mark.parametrize("option", [{"alpha_init": 2.0}, {"alpha_trainable": False}])
def test_a_frozen_kernel_has_no_alpha(option):
    with pytest.raises(UserError, match="which has no α"):
        convert(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), density=0.5, offset="frozen", **option)
