"""Random supports and the streams of keys behind them: exact, uniform, and the same for ever."""

import itertools
import time
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from dctps_jax import DCTpSLinear, UserError, seeds
from dctps_jax.models import create_model, prunable_layers
from dctps_jax.pruning import ALLOCATIONS, allocate, prune, random_masks
from dctps_jax.pruning.random import random_support
from dctps_jax.seeds import as_key

KEY = jax.random.key(5)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 400), st.floats(0, 1), st.integers(0, 2**31))
def test_supports_are_exact_sorted_and_distinct(size, part, seed):
    count = round(part * size)
    support = random_support(jax.random.key(seed), size, count)
    assert support.shape == (count,) and support.dtype == np.int64
    assert np.all(np.diff(support) > 0)
    assert count == 0 or (support[0] >= 0 and support[-1] < size)
    np.testing.assert_array_equal(support, random_support(jax.random.key(seed), size, count))


@pytest.mark.parametrize("size", [0, 1, 2, 7])
def test_none_and_all(size):
    assert len(random_support(KEY, size, 0)) == 0
    np.testing.assert_array_equal(random_support(KEY, size, size), np.arange(size))


def test_the_stream_never_changes():
    # Saved runs depend on these numbers: a seed must always give the same masks.
    assert random_support(jax.random.key(0), 1000, 8).tolist() == [49, 167, 196, 259, 458, 556, 725, 803]
    assert random_support(jax.random.key(1), 1000, 8).tolist() == [268, 272, 390, 490, 576, 584, 833, 950]
    assert random_support(jax.random.key(1), 12, 9).tolist() == [0, 1, 3, 5, 6, 7, 9, 10, 11]
    masks = random_masks(jax.random.key(0), {"a": (3, 3, 2, 4), "b": (10, 7)}, {"a": 5, "b": 6})
    positions = [np.flatnonzero(mask).tolist() for mask in masks.values()]
    assert positions == [[31, 41, 56, 63, 69], [2, 20, 22, 23, 62, 66]]


def test_legacy_keys_are_the_typed_ones():
    for seed in (0, 123):
        expected = random_support(jax.random.key(seed), 1000, 20)
        np.testing.assert_array_equal(random_support(jax.random.PRNGKey(seed), 1000, 20), expected)
    shapes, counts = {"a": (40, 5)}, {"a": 20}
    typed, legacy = (random_masks(key, shapes, counts) for key in (jax.random.key(3), jax.random.PRNGKey(3)))
    np.testing.assert_array_equal(typed["a"], legacy["a"])


@pytest.mark.parametrize("implementation", ["rbg", "unsafe_rbg"])
def test_other_generators_keys_work(implementation):
    supports = {random_support(jax.random.key(seed, impl=implementation), 10**6, 5).tobytes() for seed in range(8)}
    assert len(supports) == 8


@pytest.mark.parametrize(("size", "count"), [(5, 2), (5, 3), (6, 1), (40, 39)])
def test_all_sets_are_equally_likely(size, count):
    sets = {subset: 0 for subset in itertools.combinations(range(size), count)}
    draws = 100 * len(sets)
    keys = jax.random.key_data(jax.random.split(jax.random.key(17), draws))
    for key in np.asarray(keys):
        sets[tuple(random_support(key, size, count).tolist())] += 1
    statistic = sum((found - 100) ** 2 / 100 for found in sets.values())
    freedom = len(sets) - 1
    # Chi-square has mean k and variance 2k; five deviations, with keys that are fixed.
    assert statistic < freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize(("size", "count"), [(1000, 300), (1000, 700), (3, 1)])
def test_every_position_is_equally_likely(size, count):
    keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(3), 400)))
    hits = np.zeros(size)
    for key in keys:
        hits[random_support(key, size, count)] += 1
    expected, variance = 400 * count / size, 400 * count / size * (1 - count / size)
    assert np.abs(hits - expected).max() < 5 * np.sqrt(variance)


def test_few_of_very_many_are_fast():
    start = time.perf_counter()
    support = random_support(KEY, 10**15, 1000)
    assert time.perf_counter() - start < 0.5
    assert len(support) == 1000 and support[-1] > 0.9 * 10**15


def test_masks_have_the_counts_and_follow_the_key():
    shapes = {"a": (3, 3, 4, 8), "b": (20, 10), "c": (20, 10), "d": (2, 2)}
    counts = {"a": 17, "b": 50, "c": 50, "d": 0}
    masks = random_masks(KEY, shapes, counts)
    assert list(masks) == list(shapes)
    for path, mask in masks.items():
        assert mask.shape == shapes[path] and mask.dtype == bool and mask.sum() == counts[path]
    again, other = random_masks(KEY, shapes, counts), random_masks(jax.random.key(6), shapes, counts)
    for path in ("a", "b", "c"):
        np.testing.assert_array_equal(masks[path], again[path])
        assert np.any(masks[path] != other[path])
    assert np.any(masks["b"] != masks["c"]), "layers of one shape must not share their support"
    # A layer's mask depends on its place, shape and count only.
    changed = random_masks(KEY, shapes | {"a": (5, 5)}, counts | {"a": 3, "d": 4})
    np.testing.assert_array_equal(masks["b"], changed["b"])


@pytest.mark.parametrize("count", [-1, 5])
def test_impossible_counts_are_refused(count):
    with pytest.raises(UserError, match=rf"d has 4 weights; it cannot keep {count}"):
        random_masks(KEY, {"d": (2, 2)}, {"d": count})


@pytest.mark.parametrize("method", ALLOCATIONS)
def test_prune_places_the_allocated_counts_and_leaves_the_model_alone(method):
    model = create_model("lenet", num_classes=10, rngs=nnx.Rngs(0))
    layers = prunable_layers(model)
    before = np.asarray(layers["fcs.0"].kernel[...])
    shapes = {path: layer.kernel_shape for path, layer in layers.items()}
    options = {"dense_layers": ["convs.0"], "layer_densities": {"fcs.*": 0.02}}
    masks = prune(model, method, 0.05, key=KEY, **options)
    counts = allocate(shapes, 0.05, method, **options)
    assert {path: int(mask.sum()) for path, mask in masks.items()} == counts and counts["convs.0"] == 450
    for path, mask in random_masks(KEY, shapes, counts).items():
        np.testing.assert_array_equal(masks[path], mask)
    assert all(layer.mask is None for layer in layers.values())
    np.testing.assert_array_equal(layers["fcs.0"].kernel[...], before)


def test_streams_of_a_seed_are_distinct_and_fixed():
    data = {
        (seed, name): jax.random.key_data(seeds.stream(seed, name)).tobytes()
        for seed in (0, 1)
        for name in seeds.STREAMS
    }
    assert len(set(data.values())) == len(data)
    # Saved runs depend on the order of the names.
    assert seeds.STREAMS[:5] == ("init", "masks", "split", "order", "augment")
    expected = jax.random.fold_in(jax.random.key(0), 1)
    assert data[0, "masks"] == jax.random.key_data(expected).tobytes()
    with pytest.raises(ValueError):
        seeds.stream(0, "nothing")


def test_a_network_without_masks_costs_no_more_memory_than_its_new_masks():
    size = 1000 * 1000
    layer = DCTpSLinear(1000, 1000, rngs=nnx.Rngs(0))
    prune(layer, "uniform", 0.001, key=0)
    tracemalloc.start()
    prune(layer, "uniform", 0.001, key=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5 * size  # a list of all positions takes 8 bytes a weight


def test_a_raw_key_of_another_length_is_refused():
    with pytest.raises(UserError, match=r"key is an array of uint32 of shape \(3,\); it must be one key"):
        as_key(jnp.zeros(3, jnp.uint32))
    assert as_key(jnp.zeros(2, jnp.uint32)).shape == (2,)
