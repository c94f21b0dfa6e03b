"""The original's checkpoints: its names and layouts, both ways, and what is said about files that do not fit."""

import sys
import types
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dctps_jax import DCTpSLinear, DCTpSLinearGeneral, UserError, convert, dct, torch_compat
from dctps_jax.models import create_model, prunable_layers
from dctps_jax.pruning import apply_masks, get_masks
from dctps_jax.torch_compat import load_state_dict, read_state_dict, to_state_dict, write_state_dict
from tests import reference_data as reference

MAPS = reference.index("name_map")["maps"]


def build(name, offset=None, **options):
    defaults: dict[str, Any] = {"width": 8} if name.startswith("resnet") else {}
    return create_model(name, num_classes=10, offset=offset, init="zeros", rngs=nnx.Rngs(0), **defaults | options)


def build_for(key):
    network, offset = key.split("/")
    return build(reference.our_name(network), reference.our_offset(offset))


def random_state_dict(model, dtype: type[np.floating] = np.float32):
    """Return numbers of the right names and shapes; the offsets are left out."""
    rng = np.random.default_rng(0)
    names = {name: array.shape for name, array in to_state_dict(model).items() if not name.endswith(".dct.weight")}
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in names.items()}


def variable_at(model, key):
    node = model
    for name in key.replace("/", ".").split("."):
        node = node[int(name)] if name.isdigit() else getattr(node, name)
    return node


def numbers(model):
    return [np.array(leaf) for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(model)))]


def assert_untouched(model, before):
    for now, then in zip(numbers(model), before, strict=True):
        assert now.dtype == then.dtype
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize("key", MAPS)
def test_names_shapes_and_layouts_are_the_originals(key):
    model, rows = build_for(key), MAPS[key]
    shapes = {name: array.shape for name, array in to_state_dict(model).items()}
    assert shapes == {row[0]: tuple(row[3]) for row in rows}
    rng = np.random.default_rng(1)
    state_dict = {row[0]: rng.normal(size=row[3]).astype(np.float32) for row in rows if row[2] != "offset"}
    load_state_dict(model, state_dict)
    for name, ours, kind, _, axes, trainable in rows:
        if kind == "offset":
            layer = variable_at(model, ours.partition("/")[0])
            expected = dct.conv_kernel(layer.kernel_shape).astype(np.float32)
            np.testing.assert_array_equal(to_state_dict(model)[name].transpose(axes), expected)
            continue
        variable, array = variable_at(model, ours), state_dict[name]
        assert isinstance(variable, nnx.Param) == trainable, ours
        expected = array.transpose(axes) if axes else array.reshape(variable.shape)
        np.testing.assert_array_equal(variable[...], expected, err_msg=ours)


@pytest.mark.parametrize("name", ["lenet", "resnet18", "resnet50", "vgg11", "mobilenet_v2", "fixup_resnet20"])
@pytest.mark.parametrize("offset", [None, "dct"])
def test_round_trip(name, offset):
    model = build(name, offset)
    state_dict = random_state_dict(model)
    load_state_dict(model, state_dict)
    written = to_state_dict(model)
    offsets = [f"{path}.dct.weight" for path in prunable_layers(model)] if offset else []
    assert set(written) == {*state_dict, *offsets}
    for key, array in state_dict.items():
        assert type(written[key]) is np.ndarray and written[key].dtype == np.float32
        np.testing.assert_array_equal(written[key], array, err_msg=key)
    twin = build(name, offset, alpha_trainable=False)
    load_state_dict(twin, written)
    for first, second in zip(numbers(twin), numbers(model), strict=True):
        assert first.shape == second.shape
    for key, array in to_state_dict(twin).items():
        np.testing.assert_array_equal(array, written[key], err_msg=key)


@pytest.fixture
def model():
    return build("resnet18", "dct", width=2)


@pytest.fixture
def state_dict(model):
    return random_state_dict(model)


def test_offsets_are_compared(model, state_dict):
    name = "layer1.0.conv1.dct.weight"
    kernel = dct.conv_kernel((3, 3, 2, 2)).transpose(3, 2, 0, 1)
    load_state_dict(model, state_dict | {name: kernel.astype(np.float32), "fc.dct.weight": dct.dct_matrix(16, 10).T})
    before = numbers(model)
    for wrong in (kernel + 1e-4, kernel.transpose(0, 1, 3, 2), kernel[..., None], np.full_like(kernel, np.nan)):
        with pytest.raises(UserError, match=r"layer1.0.conv1.dct.weight is not the DCT kernel of its shape"):
            load_state_dict(model, state_dict | {name: wrong})
    assert_untouched(model, before)
    with pytest.raises(UserError, match=r"unknown conv1.dct.weight"):
        load_state_dict(build("resnet18", None, width=2), {"conv1.dct.weight": kernel})


def test_other_offsets_are_not_the_originals(state_dict):
    model = build("resnet18", "hadamard", width=2)
    before = numbers(model)
    for use in (to_state_dict, lambda model: load_state_dict(model, state_dict)):
        with pytest.raises(UserError, match=r"conv1 has the offset 'hadamard'; .*'dct' or without one"):
            use(model)
    assert_untouched(model, before)


def test_other_kinds_of_layers_are_not_the_originals():
    model = nnx.Sequential(DCTpSLinear(2, 3, rngs=nnx.Rngs(0)), DCTpSLinearGeneral(3, (2, 2), rngs=nnx.Rngs(0)))
    for use in (to_state_dict, lambda model: load_state_dict(model, {})):
        with pytest.raises(UserError, match=r"layers.1 is a DCTpSLinearGeneral; the original's checkpoints are for"):
            use(model)


def stacked(rngs):
    return nnx.vmap(lambda key: DCTpSLinear(2, 2, rngs=nnx.Rngs(key)))(jax.random.split(rngs.params(), 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda rngs: convert(nnx.Linear(2, 2, rngs=rngs), density=0.5, offset="frozen"), "1 has a frozen kernel, w"),
        (stacked, "1 holds layers that nnx.vmap has stacked, w"),
        (lambda rngs: nnx.Linear(2, 2, rngs=rngs), r"1\.\w+ is a parameter of shape \(2"),
        (lambda rngs: nnx.LayerNorm(2, rngs=rngs), r"1\.\w+ is a parameter of shape \(2,\)"),
        (lambda rngs: nnx.List([nnx.Param(jnp.ones(3))]), r"1\.0 is a parameter of shape \(3,\)"),
    ],
)
def test_what_the_originals_checkpoints_do_not_hold_is_refused(make, message):
    rngs = nnx.Rngs(0)
    model = nnx.List([DCTpSLinear(2, 2, rngs=rngs), make(rngs)])
    for use in (to_state_dict, lambda model: load_state_dict(model, {})):
        with pytest.raises(UserError, match=message):
            use(model)


def test_batchnorm_without_scale_and_bias():
    norm = nnx.BatchNorm(3, use_scale=False, use_bias=False, rngs=nnx.Rngs(0))
    assert list(to_state_dict(nnx.List([norm]))) == ["0.running_mean", "0.running_var"]


def test_bfloat16_is_written_as_float32(tmp_path):
    model = nnx.List([DCTpSLinear(2, 3, param_dtype=jnp.bfloat16, offset=None, rngs=nnx.Rngs(0))])
    write_state_dict(tmp_path / "net.npz", to_state_dict(model))
    found = read_state_dict(tmp_path / "net.npz")["0.weight"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.T, model[0].kernel[...].astype(jnp.float32))


def test_num_batches_tracked_is_accepted(model, state_dict):
    load_state_dict(
        model, state_dict | {"bn1.num_batches_tracked": np.array(7), "layer1.0.bn1.num_batches_tracked": np.array(7)}
    )
    np.testing.assert_array_equal(model.bn1.mean[...], state_dict["bn1.running_mean"])


def test_all_problems_are_told_at_once_and_nothing_is_changed(model, state_dict):
    before = numbers(model)
    del state_dict["bn1.weight"], state_dict["fc.scaling"]
    state_dict["conv1.conv.weight"] = state_dict["conv1.conv.weight"].transpose(2, 3, 1, 0)
    state_dict["fc.linear.bias"] = np.zeros((1, 10), np.float32)
    state_dict |= {"fc.weight": np.zeros((10, 16), np.float32), "conv1.dct.weight": np.zeros((2, 3, 3, 3), np.float32)}
    with pytest.raises(UserError) as caught:
        load_state_dict(model, state_dict)
    message = str(caught.value)
    assert message.startswith("the state dict does not fit the model: ")
    assert sorted(message.partition(": ")[2].split("; ")) == sorted(
        [
            "missing bn1.weight",
            "missing fc.scaling",
            "unknown fc.weight",
            "conv1.conv.weight has shape (3, 3, 3, 2), the model needs (2, 3, 3, 3)",
            "fc.linear.bias has shape (1, 10), the model needs (10,)",
            "conv1.dct.weight is not the DCT kernel of its shape",
        ]
    )
    assert_untouched(model, before)


def test_a_network_without_offset_does_not_fit_one_with(model):
    plain = random_state_dict(build("resnet18", None, width=2))
    with pytest.raises(UserError, match=r"missing conv1.conv.weight; .*unknown conv1.weight"):
        load_state_dict(model, plain)


@pytest.mark.parametrize("form", ["masked", "compact"])
def test_masks_are_respected(model, state_dict, form):
    mask = np.random.default_rng(2).random((3, 3, 2, 2)) < 0.5
    apply_masks(model, {"layer1.0.conv1": mask}, form)
    name, before = "layer1.0.conv1.conv.weight", numbers(model)
    with pytest.raises(UserError, match=f"{name} is not zero outside the layer's mask"):
        load_state_dict(model, state_dict)
    assert_untouched(model, before)
    state_dict[name] = np.where(mask.transpose(3, 2, 0, 1), state_dict[name], 0)
    load_state_dict(model, state_dict)
    np.testing.assert_array_equal(get_masks(model)["layer1.0.conv1"], mask)
    np.testing.assert_array_equal(to_state_dict(model)[name], state_dict[name])
    np.testing.assert_array_equal(model.layer1[0].conv1.sparse_kernel() != 0, mask)
    assert model.layer1[0].conv1.kernel[...].size == (mask.size if form == "masked" else mask.sum())


def test_values_keep_the_wider_type():
    with jax.enable_x64(True):
        model = build("lenet", "dct")
        wide = random_state_dict(model, np.float64)
        load_state_dict(model, wide)
        for name, array in to_state_dict(model).items():
            if name in wide:
                assert array.dtype == np.float64
                np.testing.assert_array_equal(array, wide[name])
        load_state_dict(model, random_state_dict(model, np.float32))
        assert model.fcs[0].kernel.dtype == jnp.float64
    model = build("lenet")
    load_state_dict(model, random_state_dict(model, np.float16))
    assert model.fcs[0].kernel.dtype == jnp.float32


def test_float64_alphas_of_the_originals_fixup_networks_load_without_a_warning():
    # In the original's checkpoints the α of a block's first convolution is float64 (QUIRKS D).
    model = build("fixup_resnet20", "dct")
    state_dict = random_state_dict(model)
    name = "layer1.0.conv1.scaling"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_state_dict(model, state_dict | {name: np.array(0.1, np.float64)})
    assert model.layer1[0].conv1.alpha.dtype == jnp.float32 and model.layer1[0].conv1.alpha[...] == np.float32(0.1)


def test_npz_round_trip(tmp_path, model, state_dict):
    for path in (tmp_path / "net.npz", str(tmp_path / "other.npz")):
        write_state_dict(path, state_dict)
        found = read_state_dict(path)
        assert list(found) == list(state_dict)
        for name, array in state_dict.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)
    load_state_dict(model, found)
    with pytest.raises(UserError, match=r"net.pt ends in '.pt'; a state dict is written as .npz"):
        write_state_dict(tmp_path / "net.pt", state_dict)


def test_missing_and_foreign_names(tmp_path):
    with pytest.raises(UserError, match=r"net.npz does not exist; it should hold a state dict"):
        read_state_dict(tmp_path / "net.npz")
    (tmp_path / "net.h5").write_bytes(b"x")
    with pytest.raises(UserError, match=r"net.h5 ends in '.h5'; a state dict ends in .npz, .pt, .pth or .model"):
        read_state_dict(tmp_path / "net.h5")


def compressed(path, flip):
    np.savez_compressed(path, kernel=np.arange(1000.0) % 7)
    content = bytearray(path.read_bytes())
    content[flip] ^= 0xFF
    path.write_bytes(content)


def truncated(path):
    np.savez(path, kernel=np.arange(1000.0))
    path.write_bytes(path.read_bytes()[:3000])


BAD_FILES = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello"),
    "truncated": truncated,
    "damaged": lambda path: compressed(path, 60),
    "objects": lambda path: np.savez(path, kernel=np.array([{}], object)),
    "single array": lambda path: np.save(path.open("wb"), np.ones(3)),
}


@pytest.mark.parametrize("kind", BAD_FILES)
@pytest.mark.filterwarnings("ignore:unclosed file")
def test_bad_npz_files_are_named(tmp_path, kind):
    path = tmp_path / "net.npz"
    BAD_FILES[kind](path)
    with pytest.raises(UserError, match=r"net.npz (cannot be read as .npz|is no .npz file, or a truncated one)"):
        read_state_dict(path)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".model"])
def test_pytorch_files_without_pytorch(tmp_path, monkeypatch, suffix):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / f"net{suffix}"
    path.write_bytes(b"x")
    with pytest.raises(UserError, match=r"needs PyTorch, which is not installed; install it, or save .*np.savez"):
        torch_compat.read_state_dict(path)


@pytest.mark.parametrize("error", [EOFError(), RuntimeError("bad magic\nmore")])
def test_damaged_pytorch_files_are_named(tmp_path, monkeypatch, error):
    def load(*arguments, **options):
        raise error

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(load=load))
    (tmp_path / "net.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"net.pt is not a PyTorch state dict"):
        read_state_dict(tmp_path / "net.pt")


def test_pytorch_files(tmp_path):
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(3, 2)
    torch.save(layer.state_dict(), tmp_path / "net.model")
    found = read_state_dict(tmp_path / "net.model")
    np.testing.assert_array_equal(found["weight"], layer.weight.detach().numpy())
    for number, content in enumerate(({"net": layer.state_dict()}, [1, 2], layer)):
        torch.save(content, tmp_path / f"{number}.pt")
    (tmp_path / "3.pt").write_bytes(b"")
    (tmp_path / "4.pt").write_bytes(b"hello")
    for number in range(5):
        with pytest.raises(UserError, match=f"{number}.pt is not a PyTorch state dict"):
            read_state_dict(tmp_path / f"{number}.pt")
