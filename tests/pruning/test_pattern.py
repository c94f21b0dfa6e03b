"""N:M supports: N of every M inputs of each output, at random or by scores, and what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from dctps_jax import UserError, convert
from dctps_jax.pruning import allocate, apply_masks, get_masks, prune, random_pattern_supports
from tests.small_networks import SmallNet, small_batch

KEY = jax.random.key(3)
FIRST = ("conv1",)  # 3·3·3 inputs, which 4 does not divide


def kept_of_each(mask, of):
    """How many of every `of` inputs are kept, written without the package: output by output."""
    matrix = mask.reshape(-1, mask.shape[-1])
    return {int(column[start : start + of].sum()) for column in matrix.T for start in range(0, len(column), of)}


@pytest.mark.parametrize("offset", [None, "dct"])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("uniform", {}),
        ("random", {}),
        ("magnitude", {"scope": "layer"}),
        ("snip", {"batch": small_batch()}),
        ("force", {"batch": small_batch(), "num_steps": 3}),
        ("synflow", {"batch": small_batch(), "num_steps": 4, "schedule": "linear"}),
        ("grasp", {"batch": small_batch(), "allocation": "uniform"}),
    ],
)
def test_each_output_keeps_n_of_every_m_inputs(method, options, offset):
    model = SmallNet(offset)
    masks = prune(model, method, 0.25, pattern="1:4", dense_layers=FIRST, key=KEY, **options)
    assert masks["conv1"].all()
    for path in ("conv2", "shortcut", "fc"):
        assert kept_of_each(masks[path], 4) == {1}, path
    shapes = {path: mask.shape for path, mask in masks.items()}
    counts = allocate(shapes, 0.25, "uniform", pattern="1:4", dense_layers=FIRST)
    assert counts == {path: int(mask.sum()) for path, mask in masks.items()}


def test_a_score_keeps_the_highest_of_each_group():
    layer = SmallNet(None).fc
    kernel = np.abs(np.asarray(layer.kernel[...]))
    mask = prune(layer, "magnitude", 0.5, pattern="2:4", key=KEY)[""]
    for output in range(10):
        for start in range(0, 32, 4):
            group, kept = kernel[start : start + 4, output], mask[start : start + 4, output]
            assert group[kept].min() > group[~kept].max()


@settings(deadline=None, max_examples=30)
@given(of=st.integers(2, 9), groups=st.integers(1, 5), outputs=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_random_patterns_are_exact_and_follow_from_the_key(of, groups, outputs, seed):
    keep = seed % (of - 1) + 1
    shapes = {"a": (of * groups, outputs), "b": (2, of, outputs)}
    supports, again = (
        random_pattern_supports(jax.random.key(seed), shapes, f"{keep}:{of}", keep / of) for _ in range(2)
    )
    for path, shape in shapes.items():
        mask = np.zeros(np.prod(shape), bool)
        mask[supports[path]] = True
        assert kept_of_each(mask.reshape(shape), of) == {keep}
        np.testing.assert_array_equal(supports[path], again[path])


def test_every_choice_of_n_of_m_is_equally_likely():
    positions = random_pattern_supports(KEY, {"a": (4, 6000)}, "2:4", 0.5)["a"]
    mask = np.zeros(4 * 6000, bool)
    mask[positions] = True
    codes = np.packbits(mask.reshape(4, 6000).T, axis=1, bitorder="little")[:, 0]
    values, counts = np.unique(codes, return_counts=True)
    assert len(values) == 6 and np.all(np.abs(counts - 1000) < 150)  # the deviation is 29


def test_random_supports_are_those_of_prune_and_never_change():
    shapes = {"a": (8, 3), "b": (2, 2, 2, 2)}
    supports = random_pattern_supports(jax.random.key(0), shapes, "2:4", 0.5)
    assert {path: support.tolist() for path, support in supports.items()} == {
        "a": [0, 1, 2, 3, 7, 8, 12, 13, 15, 16, 20, 23],
        "b": [2, 3, 4, 7, 8, 9, 13, 14],
    }
    model = SmallNet(None)
    masks = prune(model, "uniform", 0.5, pattern="2:4", dense_layers=FIRST, key=KEY)
    shapes = {path: mask.shape for path, mask in masks.items()}
    for path, support in random_pattern_supports(KEY, shapes, "2:4", 0.5, dense_layers=FIRST).items():
        np.testing.assert_array_equal(support, np.flatnonzero(masks[path]))


@pytest.mark.parametrize("form", ["masked", "compact"])
@pytest.mark.parametrize("method", ["uniform", "magnitude"])
def test_converted_networks_have_a_pattern(form, method):
    model = convert(nnx.Sequential(nnx.Linear(12, 8, rngs=nnx.Rngs(0)), nnx.relu), density=1 / 3, method=method,
                    pattern="1:3", offset=None, form=form)  # fmt: skip
    (mask,) = get_masks(model).values()
    assert kept_of_each(mask, 3) == {1}
    assert model(jnp.ones((2, 12))).shape == (2, 8)


def test_a_pattern_stays_within_the_masks_that_are_there():
    model = SmallNet(None)
    masks = prune(model, "uniform", 0.5, pattern="2:4", dense_layers=FIRST, key=KEY)
    apply_masks(model, masks)
    for method in ("uniform", "magnitude"):
        later = prune(model, method, 0.25, pattern="1:4", dense_layers=FIRST, key=jax.random.key(9))
        assert kept_of_each(later["conv2"], 4) == {1}
        assert not any((later[path] & ~mask).any() for path, mask in masks.items())
    with pytest.raises(UserError, match=r"conv2: 3 of every 4 inputs are to be kept, and the masks .* keep 2 of some"):
        prune(model, "uniform", 0.75, pattern="3:4", dense_layers=FIRST, key=KEY)


@pytest.mark.parametrize("method", ["uniform", "snip"])
def test_layers_that_m_does_not_divide_are_named_with_the_ways_out(method):
    with pytest.raises(
        UserError, match=r"each output of conv1 has 3·3·3 = 27; .* dense_layers=\('conv1',\), or choose"
    ):
        prune(SmallNet(None), method, 0.5, pattern="2:4", key=KEY, batch=small_batch())


@pytest.mark.parametrize(
    ("method", "density", "options", "message"),
    [
        ("uniform", 0.01, {"pattern": "2:4"}, r"keeps 0\.5 of .*, and density is 0\.01; set the density to 0\.5"),
        ("epl", 0.5, {"pattern": "2:4"}, "the same density, and the weights are allocated by 'epl'"),
        ("snip", 0.5, {"pattern": "2:4", "allocation": "erk"}, "allocated by 'erk'"),
        ("uniform", 0.5, {"pattern": "4:2"}, "it must be \"N:M\" with 0 < N < M"),
        ("uniform", 0.5, {"pattern": "half"}, "pattern is 'half'"),
        ("uniform", 0.5, {"pattern": (2, 4)}, r"pattern is \(2, 4\)"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(method, density, options, message):
    with pytest.raises(UserError, match=message):
        prune(SmallNet(None), method, density, key=KEY, batch=small_batch(), dense_layers=FIRST, **options)


def test_a_layer_without_any_score_is_refused():
    model = SmallNet(None)
    model.fc.kernel.set_value(jnp.zeros((32, 10)))
    with pytest.raises(UserError, match=r"all scores of fc are 0, .* dense_layers"):
        prune(model, "magnitude", 0.5, pattern="2:4", dense_layers=FIRST, key=KEY)


def test_where_no_layer_fits_the_advice_is_another_pattern():
    with pytest.raises(UserError, match=r"no layer has one: they have 6, 9; choose an M that divides 3, which divides"):
        allocate({"a": (6, 4), "b": (3, 3, 1, 4)}, 0.5, "uniform", pattern="2:4")
    shapes = {"a": (5, 4), "b": (7, 4), "c": (8, 4)}
    with pytest.raises(UserError, match="they have 5, 7; leave the pattern out"):
        allocate(shapes, 0.5, "uniform", pattern="1:2", dense_layers="c")
    with pytest.raises(
        UserError, match=r"each output of a has 5; keep all weights of such layers, dense_layers=\('a',"
    ):
        allocate(shapes, 0.5, "uniform", pattern="1:2", dense_layers="b")
