"""Masks onto a model and off it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dctps_jax import Mask, UserError
from dctps_jax.models import create_model, prunable_layers
from dctps_jax.npz import read_npz, write_npz
from dctps_jax.pruning import (
    apply_masks,
    digest_of_masks,
    get_masks,
    load_masks,
    load_run_masks,
    prune,
    save_masks,
)
from dctps_jax.pruning.selection import top_k_global


@pytest.fixture
def model():
    return create_model("lenet", num_classes=10, rngs=nnx.Rngs(0))


def kernels(model):
    return {path: np.array(layer.kernel[...]) for path, layer in prunable_layers(model).items()}


def test_masks_are_set_and_weights_zeroed(model):
    before = kernels(model)
    masks = prune(model, "erk", 0.1, key=jax.random.key(0))
    assert apply_masks(model, masks) is None
    for path, layer in prunable_layers(model).items():
        assert isinstance(layer.mask, Mask)
        np.testing.assert_array_equal(layer.mask[...], masks[path])
        np.testing.assert_array_equal(layer.kernel[...], np.where(masks[path], before[path], 0))
    found = get_masks(model)
    assert list(found) == list(masks)
    for path, mask in found.items():
        assert isinstance(mask, np.ndarray) and mask.dtype == bool
        np.testing.assert_array_equal(mask, masks[path])


def test_layers_that_are_not_named_stay_as_they_are(model):
    before = kernels(model)
    apply_masks(model, {"fcs.2": jnp.zeros((82, 10), bool)})
    layers = prunable_layers(model)
    assert [path for path, layer in layers.items() if layer.mask is not None] == ["fcs.2"]
    assert not np.any(layers["fcs.2"].kernel[...])
    for path in ("convs.0", "convs.3", "convs.6", "fcs.0"):
        np.testing.assert_array_equal(layers[path].kernel[...], before[path])
    found = get_masks(model)
    assert found["convs.0"].shape == (5, 5, 3, 6) and found["convs.0"].all() and not found["fcs.2"].any()
    apply_masks(model, {})


def test_masks_read_back_after_split_and_merge(model):
    masks = prune(model, "uniform", 0.3, key=jax.random.key(1))
    apply_masks(model, masks)
    graphdef, state = nnx.split(model)
    for path, mask in get_masks(nnx.merge(graphdef, nnx.to_pure_dict(state))).items():
        np.testing.assert_array_equal(mask, masks[path])


@pytest.mark.parametrize(
    ("path", "shape", "message"),
    [
        ("fc", (82, 10), "'fc' is no prunable layer of the model; they are: convs.0, convs.3, convs.6, fcs.0, fcs.2"),
        ("fcs.2", (10, 82), r"mask of fcs.2 has shape \(10, 82\), its kernel \(82, 10\)"),
    ],
)
def test_mistakes_change_nothing(model, path, shape, message):
    before = kernels(model)
    with pytest.raises(UserError, match=message):
        apply_masks(model, {"convs.0": np.zeros((5, 5, 3, 6), bool), path: np.zeros(shape, bool)})
    for name, layer in prunable_layers(model).items():
        assert layer.mask is None
        np.testing.assert_array_equal(layer.kernel[...], before[name])


@pytest.mark.parametrize("form", ["masked", "compact"])
def test_a_mask_of_other_values_changes_nothing(model, form):
    before, masks = get_masks(model), get_masks(model)
    *others, last = masks
    masks |= {path: np.zeros_like(masks[path]) for path in others} | {last: np.full(masks[last].shape, 0.5)}
    with pytest.raises(UserError, match=f"the mask of {last} has other values than 0 and 1; give booleans"):
        apply_masks(model, masks, form)
    for path, mask in get_masks(model).items():
        np.testing.assert_array_equal(mask, before[path])


def test_masks_keep_in_a_file(tmp_path):
    masks = {"convs.0": np.eye(4, dtype=bool), "fc": jnp.zeros((2, 3), bool)}
    for path in (tmp_path / "masks.npz", str(tmp_path / "masks.npz")):  # the second replaces the first
        save_masks(path, masks)
        found = load_masks(path)
        assert list(found) == list(masks)
        for name, mask in masks.items():
            assert found[name].dtype == bool
            np.testing.assert_array_equal(found[name], mask)
    assert [entry.name for entry in tmp_path.iterdir()] == ["masks.npz"]


@pytest.mark.filterwarnings("ignore:unclosed file")  # numpy leaves a damaged archive open
def test_missing_and_damaged_files_are_named(tmp_path):
    path = tmp_path / "masks.npz"
    with pytest.raises(UserError, match=r"masks.npz does not exist"):
        load_masks(path)
    save_masks(path, {"fc": np.random.default_rng(0).random((100, 100)) < 0.5})
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[:-40], whole[:200] + b"xxxx" + whole[204:]):
        path.write_bytes(content)
        with pytest.raises(
            UserError,
            match=r"masks.npz (cannot be read as .npz|is no .npz file, or a truncated one; give a file) with the masks",
        ):
            load_masks(path)


def test_arrays_that_are_no_masks_are_refused(tmp_path):
    np.savez(tmp_path / "weights.npz", fc=np.ones((2, 2), np.float32))
    with pytest.raises(UserError, match=r"weights\.npz holds fc as float32 of shape \(2, 2\), which is no mask"):
        load_masks(tmp_path / "weights.npz")
    with pytest.raises(UserError, match="is a file; name the directory"):
        load_run_masks(tmp_path / "weights.npz")


def test_only_masks_are_kept_in_a_file_and_only_where_there_is_a_folder(tmp_path):
    with pytest.raises(UserError, match="the mask of fc has other values than 0 and 1"):
        save_masks(tmp_path / "masks.npz", {"fc": np.full(3, 0.5)})
    with pytest.raises(UserError, match=r"path is .*none.masks\.npz, but .* is no directory"):
        save_masks(tmp_path / "none" / "masks.npz", {"fc": np.ones(3, bool)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("compress", [False, True])
def test_arrays_of_any_name_are_the_bytes_that_numpy_writes(tmp_path, compress):
    path, save = tmp_path / "arrays.npz", np.savez_compressed if compress else np.savez
    arrays = {"layer1.0.conv": np.arange(6.0).reshape(2, 3), "b": np.array(3, np.int8)}
    save(tmp_path / "numpy.npz", **arrays)
    write_npz(path, arrays, compress=compress)
    assert path.read_bytes() == (tmp_path / "numpy.npz").read_bytes()
    write_npz(path, {"file": np.arange(3), "allow_pickle": np.arange(4)}, compress=compress)
    found = read_npz(path, "arrays")
    assert list(found) == ["file", "allow_pickle"] and found["file"].tolist() == [0, 1, 2]


def test_the_digest_of_masks_depends_on_what_they_keep_alone():
    mask = np.arange(12).reshape(3, 4) % 5 == 0
    digest = digest_of_masks({"b": mask, "a": mask.T})
    assert digest == "6257a9e72717e7f7a6d56a88b76b08685fb578d084e716cdc934e6402b316377"
    for dtype in (np.float32, np.int64):
        assert digest_of_masks({"a": mask.T, "b": mask.astype(dtype)}) == digest
    with pytest.raises(UserError, match="the mask of a has other values than 0 and 1"):
        digest_of_masks({"a": np.full(3, 0.5)})


def test_traced_masks_make_no_compact_layer(model):
    mask, before = np.ones((82, 10), bool), kernels(model)
    with pytest.raises(UserError, match=r'the masks are traced, .* use form="masked"'):
        jax.jit(lambda mask: apply_masks(model, {"fcs.2": mask}, "compact"))(mask)
    for path, kernel in kernels(model).items():
        np.testing.assert_array_equal(kernel, before[path])


@pytest.mark.parametrize("score", [0.0, np.nan])
def test_scores_of_a_layer_that_is_the_whole_network(score):
    with pytest.raises(UserError, match="of the network"):
        top_k_global({"": np.full(4, score)}, 2)
