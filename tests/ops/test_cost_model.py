"""What a layer may be computed by, what each method is predicted to take, and what is chosen."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from dctps_jax import DCTpSConv, DCTpSLinear, UserError, kernels
from dctps_jax.offsets import OFFSETS
from dctps_jax.offsets.dct import DCT
from dctps_jax.ops.cost_model import COSTS, MARGIN, choose, costs_of, predicted_seconds
from dctps_jax.ops.gathered import MAX_GATHERED, Gathered
from dctps_jax.ops.geometry import Geometry
from dctps_jax.ops.methods import METHODS, possible_methods
from dctps_jax.ops.target import tracing_for
from dctps_jax.ops.work import Work


def conv(shape, inputs, nnz, stride=1, groups=1, offset=DCT):
    """The work of a 2-D convolution that keeps the size of its inputs, or halves it."""
    pads = tuple(((width - 1) // 2, width // 2) for width in shape[:-2])
    return Work(Geometry(shape, (stride,) * len(pads), pads, groups), inputs, nnz, offset)


SMALL_MAP = conv((3, 3, 512, 512), (64, 4, 4, 512), 50)
MANY_WEIGHTS = conv((3, 3, 64, 64), (64, 32, 32, 64), 20_000)
STRIDED = conv((3, 3, 64, 64), (64, 32, 32, 64), 50, stride=2)
LINEAR = Work(Geometry((512, 10)), (64, 512), 50, DCT)


def test_the_positions_of_inputs_and_outputs():
    assert (STRIDED.input_positions, STRIDED.output_positions) == (64 * 32 * 32, 64 * 16 * 16)
    assert (LINEAR.input_positions, LINEAR.output_positions) == (64, 64)


@pytest.mark.parametrize(
    ("work", "with_dct", "without"),
    [
        (SMALL_MAP, "per_weight", "per_weight"),
        (STRIDED, None, None),
        (conv((3, 3, 3, 64), (2, 8, 8, 3), 9), None, "per_weight"),  # an odd number of channels has no middle
        (conv((1, 1, 64, 64), (2, 8, 8, 64), 9), "transform", "per_weight"),
        (conv((1, 1, 64, 22), (2, 8, 8, 64), 9), "transform", "per_weight"),
        (conv((1, 1, 22, 20), (2, 8, 8, 22), 9), None, "per_weight"),  # 22 is twice 11
        (conv((1, 1, 64, 64), (2, 8, 8, 64), 9, stride=2), None, None),
        (conv((1, 1, 32, 64), (2, 8, 8, 64), 9, groups=2), None, None),
        (conv((3, 3, 32, 64), (2, 8, 8, 64), 9, groups=2), None, None),
        (conv((3, 3, 1, 64), (2, 8, 8, 64), 9, groups=64), None, None),
        (LINEAR, "transform", "per_weight"),
    ],
)
def test_possible_methods(work, with_dct, without):
    for offset, apart in ((DCT, with_dct), (OFFSETS["hadamard"], None), (None, without)):
        methods = ("autodiff", "on_support", "on_support_rows", *((apart, f"{apart}_rows") if apart else ()))
        assert possible_methods(work._replace(offset=offset)) == methods


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("work", [SMALL_MAP, STRIDED, LINEAR])
def test_a_method_that_is_asked_for_is_taken_where_it_is_possible(work, platform):
    for dtype in (jnp.float32, jnp.bfloat16):
        assert choose("autodiff", work, dtype, platform) == "autodiff"
        assert choose("on_support", work, dtype, platform) == "on_support"
        for rows in ("", "_rows"):
            asked = f"per_weight{rows}"
            assert choose(asked, work, dtype, platform) == (asked if work is SMALL_MAP else f"on_support{rows}")
            asked = f"transform{rows}"
            assert choose(asked, work, dtype, platform) == (asked if work is LINEAR else f"on_support{rows}")


@pytest.mark.parametrize(
    ("work", "method"),
    [
        (SMALL_MAP, "per_weight"),
        (SMALL_MAP._replace(offset=None), "per_weight"),
        (MANY_WEIGHTS, "autodiff"),
        (MANY_WEIGHTS._replace(offset=None), "autodiff"),
        (conv((3, 3, 256, 512), (64, 8, 8, 256), 50, stride=2), "on_support"),
        # Late layers of a ResNet, and a wide linear layer.
        (conv((1, 1, 2048, 512), (128, 4, 4, 2048), 50), "transform"),
        (conv((1, 1, 512, 2048), (128, 4, 4, 512), 50), "transform"),
        (conv((1, 1, 2048, 512), (128, 4, 4, 2048), 50, offset=OFFSETS["hadamard"]), "on_support"),
        (Work(Geometry((2048, 2048)), (4096, 2048), 4194, DCT), "transform_rows"),
    ],
)
def test_the_clear_cases(work, method):
    assert choose("auto", work, jnp.float32, "cpu") == choose("auto", work, jnp.float64, "cpu") == method


@pytest.mark.parametrize("work", [SMALL_MAP, STRIDED, LINEAR, MANY_WEIGHTS])
@pytest.mark.parametrize("offset", [*OFFSETS.values(), None])
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_auto_is_the_cheapest_where_it_gains_enough(work, offset, platform):
    work = work._replace(offset=offset)
    seconds = {method: predicted_seconds(work, method, jnp.float32, platform) for method in possible_methods(work)}
    cheapest = min(seconds, key=lambda method: seconds[method])
    gain = seconds["autodiff"] - seconds[cheapest]
    enough = gain > 1e-9 * COSTS[platform].least_gain and seconds[cheapest] < MARGIN * seconds["autodiff"]
    assert choose("auto", work, jnp.float32, platform) == (cheapest if enough else "autodiff")


def test_auto_leaves_autodiff_for_no_small_gain(monkeypatch):
    """A layer of LeNet: what its few weights gather would take the memory that its kernel does not."""
    work = Work(Geometry((5, 5, 6, 16), (1, 1), ((0, 0), (0, 0))), (128, 14, 14, 6), 13, DCT)
    seconds = {method: predicted_seconds(work, method, jnp.float32) for method in ("on_support", "autodiff")}
    assert seconds["on_support"] < MARGIN * seconds["autodiff"]
    assert choose("auto", work, jnp.float32, "cpu") == "autodiff"
    monkeypatch.setitem(COSTS, "cpu", COSTS["cpu"]._replace(least_gain=0.0))
    assert choose("auto", work, jnp.float32, "cpu") == "on_support"


@pytest.mark.parametrize(
    ("work", "gathered_from"),
    [
        (SMALL_MAP, 64 * 4 * 4 * (3 * 512 + 512)),
        (conv((5, 2, 8, 6), (2, 8, 8, 8), 9), 2 * 8 * 8 * (2 * 8 + 6)),
        (conv((3, 3, 1, 64), (2, 8, 8, 64), 9, groups=64), 2 * 8 * 8 * (3 * 64 + 64)),
        (LINEAR, 64 * (512 + 10)),
    ],
)
def test_lean_is_what_gathers_no_more_than_a_dense_layer_holds(work, gathered_from):
    most = (MAX_GATHERED * gathered_from + math.prod(work.geometry.kernel_shape)) // work.output_positions
    assert Gathered.is_lean(work._replace(nnz=most))
    assert not Gathered.is_lean(work._replace(nnz=most + 1))


def test_auto_gathers_only_so_much(monkeypatch):
    most = SMALL_MAP._replace(
        nnz=next(nnz for nnz in range(10**5) if not Gathered.is_lean(SMALL_MAP._replace(nnz=nnz))) - 1
    )
    more = most._replace(nnz=most.nnz + 1)
    # Gathered they would be the cheapest.
    monkeypatch.setitem(COSTS, "cpu", COSTS["cpu"]._replace(pair=0.0, large_pair=0.0, product=1.0, row=1e3))
    assert choose("auto", most, jnp.float32, "cpu") == "on_support"
    assert choose("auto", more, jnp.float32, "cpu") == "autodiff"
    assert choose("on_support", more, jnp.float32, "cpu") == "on_support"


@pytest.mark.parametrize(
    ("size", "nnz", "method"), [(4, 118, "per_weight"), (4, 12893, "autodiff"), (32, 118, "autodiff")]
)
def test_on_a_gpu_per_weight_is_for_few_weights_on_small_maps(size, nnz, method):
    channels = 2048 // size
    work = conv((3, 3, channels, channels), (128, size, size, channels), nnz)
    assert choose("auto", work, jnp.float32, "gpu") == method


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("work", [SMALL_MAP, STRIDED, LINEAR, MANY_WEIGHTS])
def test_on_a_tpu_it_is_autodiff(work, dtype):
    assert choose("auto", work, dtype, "tpu") == "autodiff"


def test_half_precision_has_costs_of_its_own():
    assert costs_of("tpu", jnp.bfloat16) is not None
    seconds = {
        platform: predicted_seconds(MANY_WEIGHTS, "autodiff", jnp.bfloat16, platform)
        for platform in ("cpu", "gpu", "tpu", "a new one")
    }
    assert len(set(seconds.values())) == 3
    # Where they are not known, a table has the costs of the platform for float32, or those of a CPU.
    for platform, other in (("cpu", "cpu"), ("gpu", "gpu"), ("a new one", "cpu")):
        assert costs_of(platform, jnp.bfloat16) is None
        assert seconds[platform] == predicted_seconds(MANY_WEIGHTS, "autodiff", jnp.float32, other)


def test_auto_is_autodiff_where_nothing_was_measured():
    assert choose("auto", SMALL_MAP, jnp.float32) == "per_weight"
    assert choose("auto", SMALL_MAP, jnp.float32, "a new one") == "autodiff"
    for dtype in (jnp.bfloat16, jnp.float16):
        for platform in ("cpu", "gpu"):
            assert choose("auto", SMALL_MAP, dtype, platform) == "autodiff"
    with tracing_for("tpu"):
        assert choose("auto", SMALL_MAP, jnp.float32) == "autodiff"


@pytest.mark.parametrize("setting", ["sparse", "", "Auto", None])
def test_an_unknown_setting_is_refused(setting):
    with pytest.raises(
        UserError,
        match=rf"{setting!r}.*auto, autodiff, on_support, on_support_rows, per_weight, per_weight_rows, transform",
    ):
        choose(setting, SMALL_MAP, jnp.float32)


@st.composite
def works(draw):
    rank = draw(st.integers(0, 3))
    size = tuple(draw(st.integers(1, 5)) for _ in range(rank))
    spatial = tuple(draw(st.integers(1, 32)) for _ in range(rank))
    groups = draw(st.sampled_from([1, 1, 2, 8])) if rank else 1
    in_features, out_features = (draw(st.integers(1, 300)) for _ in range(2))
    stride = draw(st.integers(1, 2)) if rank else 1
    inputs = (draw(st.integers(1, 128)), *spatial, in_features * groups)
    return conv(
        (*size, in_features, out_features * groups), inputs, 0, stride, groups, draw(st.sampled_from([DCT, None]))
    )


@pytest.mark.parametrize(("platform", "dtype"), [("cpu", jnp.float32), ("gpu", jnp.float32), ("tpu", jnp.bfloat16)])
@settings(max_examples=200, deadline=None)
@given(work=works(), nnz=st.lists(st.integers(0, 10**6), min_size=2, max_size=2, unique=True).map(sorted))
def test_predictions_are_positive_and_grow_with_the_number_of_weights(platform, dtype, work, nnz):
    few, many = (work._replace(nnz=count) for count in nnz)
    for method in possible_methods(work):
        fewer, more = (predicted_seconds(count, method, dtype, platform) for count in (few, many))
        assert 0 < fewer < math.inf
        assert fewer == more if method == "autodiff" else fewer < more


@settings(max_examples=50, deadline=None)
@given(work=works(), factor=st.integers(2, 5))
def test_predictions_grow_with_the_batch(work, factor):
    batch, *rest = work.inputs
    larger = work._replace(inputs=(factor * batch, *rest), nnz=10)
    for method in possible_methods(work):
        assert predicted_seconds(larger, method, jnp.float32) > predicted_seconds(
            work._replace(nnz=10), method, jnp.float32
        )


def used_methods(monkeypatch):
    """The methods that layers are computed by from now on, one after the other."""
    used, apply_kernel = [], kernels.apply_kernel

    def record(method, *arguments):
        used.append(method)
        return apply_kernel(method, *arguments)

    monkeypatch.setattr(kernels, "apply_kernel", record)
    return used


def test_a_compact_layer_is_computed_by_its_method(monkeypatch):
    used = used_methods(monkeypatch)
    layer = DCTpSConv(4, 6, (3, 3), support=jnp.arange(5), rngs=nnx.Rngs(0))
    x = jnp.ones((2, 5, 6, 4))
    assert layer.method == "auto"
    work = Work(Geometry((3, 3, 4, 6), (1, 1), ((1, 1), (1, 1))), (2, 5, 6, 4), 5, DCT)
    assert kernels.work_of(layer, x, work.geometry) == work
    expected = np.asarray(layer(x))
    for method in METHODS:
        layer.method = method
        np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-5)
    assert used == [choose(setting, work, jnp.float32) for setting in ("auto", *METHODS)]
    for setting, message in (("fastest", "'fastest'; it must be"), ("plain", "'plain'; .* now called 'autodiff'")):
        layer.method = setting
        with pytest.raises(UserError, match=f"the method is {message}"):
            layer(x)


def test_complex_inputs_have_no_fast_transform():
    work = Work(Geometry((4096, 4096)), (4096, 4096), 100, DCT)
    assert choose("auto", work, jnp.float32, "cpu").startswith("transform")
    for setting in ("auto", "transform"):
        assert choose(setting, work, jnp.complex64, "cpu") == "autodiff"


def test_other_layers_have_one_kernel(monkeypatch):
    used = used_methods(monkeypatch)
    layer = DCTpSLinear(4, 6, mask=jnp.ones((4, 6), bool), rngs=nnx.Rngs(0))
    layer.method = "on_support"
    layer(jnp.ones((2, 4)))
    layer.set_dense()
    layer(jnp.ones((2, 4)))
    assert used == []
    layer.set_support(np.arange(3))
    layer(jnp.ones((2, 4)))
    assert used == ["on_support"]
