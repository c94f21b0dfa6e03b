"""Counts per layer: exact sums, the original's numbers where it is exact, water-filling where a layer is full."""

import logging
import math
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from dctps_jax import DCTpSLinear, UserError
from dctps_jax.pruning import ALLOCATIONS, allocate, prune
from tests import reference_data as reference

DENSITIES = [1, 0.5, 0.1, 0.05, 0.01, 0.001, 0.0001]
METHODS = {"uniform": "uniform", "equal_per_filter": "epf", "equal_per_layer": "epl", "erk": "erk"}
NETWORKS = {net["network"]: net for net in reference.index("layer_densities")}
SHAPES = {"conv": (3, 3, 4, 8), "fc": (20, 10), "tiny": (2, 3)}  # 288 + 200 + 6 weights


def shapes_of(network):
    layers = next(net for net in reference.index("architectures")["networks"] if net["network"] == network)["layers"]
    return {row[0]: tuple(row[2]) for row in layers}


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("method", ALLOCATIONS)
@pytest.mark.parametrize("network", [*NETWORKS, "mobilenet", "resnet50"])
def test_counts_sum_to_the_density_exactly(network, method, density):
    shapes = shapes_of(network)
    counts = allocate(shapes, density, method)
    assert list(counts) == list(shapes)
    assert all(type(count) is int and 0 <= count <= math.prod(shapes[path]) for path, count in counts.items())
    assert sum(counts.values()) == round(density * sum(map(math.prod, shapes.values())))


CASES = [
    (network, method, density)
    for network, net in NETWORKS.items()
    for method, by_density in net["alloc"].items()
    for density in by_density
]


@pytest.mark.parametrize(("network", "method", "density"), CASES)
def test_counts_are_the_originals_where_it_meets_the_density(network, method, density):
    net = NETWORKS[network]
    original = net["alloc"][method][density]
    counts = list(allocate(shapes_of(network), float(density), METHODS[method]).values())
    if max(original["layer_densities"]) < 1:
        assert all(abs(count - nnz) <= 1 for count, nnz in zip(counts, original["nnz_round"], strict=True))
        if sum(original["nnz_round"]) == round(float(density) * net["prunable_total"]):
            assert counts == original["nnz_round"]
    else:
        # The original drops what a full layer cannot take; here the other layers get it.
        assert all(count >= nnz - 1 for count, nnz in zip(counts[:-1], original["nnz_round"][:-1], strict=True))


def test_the_reference_has_full_and_exact_cases():
    alloc = [NETWORKS[network]["alloc"][method][density] for network, method, density in CASES]
    full = [max(case["layer_densities"]) == 1 for case in alloc]
    exact = [
        sum(case["nnz_round"]) == round(float(density) * NETWORKS[network]["prunable_total"])
        for (network, _, density), case in zip(CASES, alloc, strict=True)
    ]
    assert sum(full) >= 10 and sum(e and not f for e, f in zip(exact, full, strict=True)) >= 10


@pytest.mark.parametrize(
    ("method", "total", "expected"),
    [
        ("uniform", 99, (58, 40, 1)),  # 99 × (288, 200, 6) / 494 = 57.7, 40.1, 1.2
        ("epf", 42, (16, 20, 6)),  # 42 × (8, 10, 3) / 21
        ("epl", 17, (6, 6, 5)),  # 5.67 each
        ("erk", 53, (18, 30, 5)),  # 53 × (18, 30, 5) / 53
        # tiny is full with 6; the others share the rest in the same proportions.
        ("epf", 96, (40, 50, 6)),  # 90 × (8, 10) / 18
        ("epl", 96, (45, 45, 6)),
        ("erk", 102, (36, 60, 6)),  # 96 × (18, 30) / 48
        # fc is full too.
        ("epl", 450, (244, 200, 6)),
        ("erk", 450, (244, 200, 6)),
    ],
)
def test_proportions_by_hand(method, total, expected):
    assert tuple(allocate(SHAPES, total / 494, method).values()) == expected


def test_largest_remainders_win_and_ties_go_to_the_first():
    assert allocate({"a": (3, 1), "b": (3, 1), "c": (3, 1)}, 5 / 9, "epl") == {"a": 2, "b": 2, "c": 1}
    assert allocate({"a": (16, 1), "b": (17, 1), "c": (17, 1)}, 0.1, "uniform") == {"a": 1, "b": 2, "c": 2}
    assert allocate({"a": (15, 1), "b": (20, 1), "c": (15, 1)}, 0.1, "uniform") == {"a": 2, "b": 2, "c": 1}


SHAPE = st.lists(st.integers(1, 9), min_size=2, max_size=4).map(tuple)
LAYERS = st.lists(SHAPE, min_size=1, max_size=8).map(lambda shapes: {f"layer{i}": s for i, s in enumerate(shapes)})


@settings(deadline=None, max_examples=200)
@given(LAYERS, st.floats(1e-4, 1), st.sampled_from(list(ALLOCATIONS)))
def test_any_layers_fill_up_in_proportion(shapes, density, method):
    counts = allocate(shapes, density, method)
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    assert sum(counts.values()) == round(density * sum(sizes.values()))
    assert all(0 <= counts[path] <= sizes[path] for path in shapes)
    # Layers with room share one factor, so each lies within one of share × factor; full ones would have got more.
    share = {path: ALLOCATIONS[method](shape) for path, shape in shapes.items()}
    room = [path for path in shapes if counts[path] < sizes[path]]
    lowest = max((counts[path] - 1) / share[path] for path in room) if room else 0
    highest = min((counts[path] + 1) / share[path] for path in room) if room else math.inf
    assert lowest <= highest + 1e-9
    full = [path for path in shapes if counts[path] == sizes[path]]
    assert all((sizes[path] - 1) / share[path] <= highest + 1e-9 for path in full)


@settings(deadline=None, max_examples=100)
@given(LAYERS, st.floats(1e-3, 1), st.floats(1e-3, 1), st.sampled_from(list(ALLOCATIONS)))
def test_more_density_takes_from_no_layer(shapes, first, second, method):
    fewer, more = (allocate(shapes, density, method) for density in sorted((first, second)))
    # Largest remainders may move a single weight.
    assert all(fewer[path] <= more[path] + 1 for path in shapes)


def test_reference_shares():
    shape = (3, 3, 4, 8)
    assert {name: share(shape) for name, share in ALLOCATIONS.items()} == {
        "uniform": 288,
        "epf": 8,
        "epl": 1,
        "erk": 18,
    }
    assert ALLOCATIONS["erk"]((20, 10)) == 30


LAYOUT = {"conv1": (10, 10), "layer1.0.conv": (10, 10), "layer1.1.conv": (10, 10), "fc": (10, 10)}


def test_fixed_layers_come_out_of_the_same_total():
    assert allocate(LAYOUT, 0.4, "uniform", dense_layers=["conv1"]) == {
        "conv1": 100,
        "layer1.0.conv": 20,
        "layer1.1.conv": 20,
        "fc": 20,
    }
    counts = allocate(LAYOUT, 0.4, "epl", dense_layers=("fc",), layer_densities={"layer1.*": 0.05})
    assert counts == {"conv1": 50, "layer1.0.conv": 5, "layer1.1.conv": 5, "fc": 100}
    pairs = [("layer1.0*", 0.3), ("layer1.*", 0.1)]  # the first match counts
    expected = {"conv1": 60, "layer1.0.conv": 30, "layer1.1.conv": 10, "fc": 60}
    assert allocate(LAYOUT, 0.4, "erk", layer_densities=pairs) == expected
    assert allocate(LAYOUT, 0.4, "erk", layer_densities=dict(pairs)) == expected
    assert allocate(LAYOUT, 1, "epf", dense_layers=["*"]) == dict.fromkeys(LAYOUT, 100)
    assert allocate(LAYOUT, 0.25, "epf", dense_layers=["fc"])["conv1"] == 0


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0.1, "erdos"), {}, "no allocation 'erdos'; choose one of: uniform, epf, epl, erk"),
        ((0, "epl"), {}, "density is 0; it must be a number above 0 and at most 1"),
        ((1.01, "epl"), {}, r"density is 1\.01; it must be a number above 0"),
        ((-0.1, "epl"), {}, "density is -0.1"),
        ((math.nan, "epl"), {}, "density is nan"),
        ((0.1, "epl"), {"dense_layers": ["conv9"]}, "no layer matches 'conv9'; the layers are: conv1, layer1.0.conv"),
        ((0.1, "epl"), {"layer_densities": {"fc": 0.0}}, "the density of layers 'fc' is 0.0"),
        ((0.1, "epl"), {"layer_densities": {"fc": 2}}, "the density of layers 'fc' is 2"),
        ((0.1, "epl"), {"dense_layers": ["fc"]}, "keeps 40 weights, but .* take 100 and the others hold 300"),
        ((0.9, "epl"), {"layer_densities": {"f*": 0.1}}, "keeps 360 weights, but .* take 10 and the others hold 300"),
    ],
)
def test_mistakes_are_named(arguments, options, message):
    with pytest.raises(UserError, match=message):
        allocate(LAYOUT, *arguments, **options)


def test_prune_names_an_unknown_method():
    model, key = nnx.Module(), jax.random.key(0)
    with pytest.raises(
        UserError, match=r"no pruning method 'elk' \(did you mean '(erk|epl)'\?\); the methods are: uniform"
    ):
        prune(model, "elk", 0.1, key=key)
    with pytest.raises(UserError, match="no pruning method 'zzz'; the methods are"):
        prune(model, "zzz", 0.1, key=key)


def test_empty_layers_are_logged_and_only_those(caplog):
    with caplog.at_level(logging.WARNING, "dctps_jax"):
        allocate(shapes_of("lenet"), 0.01, "uniform")
        assert not caplog.records
        allocate(shapes_of("lenet"), 0.0001, "uniform")
    (record,) = caplog.records
    assert record.name == "dctps_jax" and record.levelno == logging.WARNING
    assert record.getMessage() == (
        "uniform at density 0.0001 leaves 3 of 5 layers without any weight: convs.0, convs.3, fcs.2"
    )


def test_a_density_in_half_precision_counts_exactly():
    density: Any = np.float16(0.1)
    shapes = {"a": (100, 100), "b": (400, 400)}
    for densities in ({}, {"b": density}):
        counts = allocate(shapes, density, "uniform", layer_densities=densities)
        assert sum(counts.values()) == round(float(density) * 170_000)
    layer = DCTpSLinear(400, 400, offset=None, rngs=nnx.Rngs(0))
    for method in ("uniform", "magnitude"):
        assert prune(layer, method, density, key=0)[""].sum() == round(float(density) * 160_000)
