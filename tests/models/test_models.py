"""The networks: the original's layers, sizes and counts; the options of create_model. Mostly shapes, no arithmetic."""

import inspect
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from dctps_jax import Alpha, DCTpSConv, DCTpSLinear, FrozenAlpha, SparseParam, UserError
from dctps_jax.models import INITIALIZERS, MODELS, RESNETS, create_model, prunable_layers, resnet
from dctps_jax.models.blocks import Running, run_blocks
from dctps_jax.models.parts import make_parts
from dctps_jax.models.resnet import BasicBlock
from tests import reference_data as reference

NETWORKS = {f"{net['network']}/{net['offset']}": net for net in reference.index("architectures")["networks"]}


class OneKey:
    """Stand in for ``nnx.Rngs`` where numbers do not matter: its counter would make abstract building quadratic."""

    def params(self):
        return jax.random.key(0)


def abstract(name, offset=None, num_classes=10, **options):
    """Build without computing anything. Evaluation mode: nothing is written, so that tracing it stays fast."""
    model = nnx.eval_shape(
        lambda: create_model(name, num_classes=num_classes, offset=offset, rngs=cast(nnx.Rngs, OneKey()), **options)
    )
    model.eval()
    return model


def abstract_of(net):
    return abstract(reference.our_name(net["network"]), reference.our_offset(net["offset"]), net["num_classes"])


def output(model, size, dtype=jnp.float32):
    graphdef, state = nnx.split(model)
    images = jax.ShapeDtypeStruct((2, size, size, 3), dtype)
    return jax.eval_shape(lambda state, x: nnx.merge(graphdef, state)(x), state, images)


def variables(model, kind):
    return jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, kind)))


@pytest.fixture
def drawn(monkeypatch):
    """Add an initialiser "numpy", which compiles nothing; list the keys and shapes that it is asked for."""
    calls = []

    def init(key, shape, dtype):
        calls.append((key, shape))
        return jnp.asarray(np.random.default_rng(len(calls)).normal(0, 0.3, shape), dtype)

    monkeypatch.setitem(INITIALIZERS, "numpy", init)
    return calls


def small(name="resnet18", **options):
    """Build for real, few classes and, where possible, two channels."""
    defaults: dict[str, Any] = ({"width": 2} if name in RESNETS else {}) | {"rngs": nnx.Rngs(0)}
    return create_model(name, num_classes=3, **defaults | options)


@pytest.mark.parametrize("key", NETWORKS)
def test_layers_are_the_originals(key, monkeypatch):
    net = NETWORKS[key]
    sizes = []
    for cls in (DCTpSConv, DCTpSLinear):

        def call(self, x, original=cls.__call__):
            y = original(self, x)
            sizes.append((self, x.shape, y.shape))
            return y

        monkeypatch.setattr(cls, "__call__", call)
    model = abstract_of(net)
    graphdef, state = nnx.split(model)
    paths = {}

    def forward(state, x):
        model = nnx.merge(graphdef, state)
        paths.update({id(layer): path for path, layer in prunable_layers(model).items()})
        return model(x)

    height = net["input_hw"]
    logits = jax.eval_shape(forward, state, jax.ShapeDtypeStruct((2, height, height, 3), jnp.float32))
    assert logits.shape == (2, net["num_classes"])
    called = {paths[id(layer)]: (layer, before, after) for layer, before, after in sizes}
    assert len(called) == len(sizes), "a layer is used twice"
    rows = []
    for path in prunable_layers(model):
        layer, before, after = called[path]
        shape, bias = list(layer.kernel_shape), layer.bias is not None
        if isinstance(layer, DCTpSLinear):
            rows.append([path, "linear", shape, None, None, None, bias, None, None])
            continue
        padding = layer.padding
        if isinstance(padding, str):
            padding = lax.padtype_to_pads(before[1:3], layer.kernel_size, layer.strides, padding)
        (stride,), (pad,) = set(layer.strides), {side for pair in padding for side in pair}
        heights = [list(sizes[1:3]) for sizes in (before, after)]
        rows.append([path, "conv", shape, stride, pad, layer.feature_group_count, bias, *heights])
    assert rows == net["layers"]


@pytest.mark.parametrize("key", NETWORKS)
def test_counts_are_the_originals(key):
    net, model = NETWORKS[key], abstract_of(NETWORKS[key])
    kinds = (nnx.Param, nnx.BatchStat, SparseParam, Alpha)
    size = {kind: sum(math.prod(leaf.shape) for leaf in variables(model, kind)) for kind in kinds}
    norms = [module for _, module in nnx.iter_modules(model) if isinstance(module, nnx.BatchNorm)]
    biases = [layer.bias for layer in prunable_layers(model).values() if layer.bias is not None]
    counts = net["counts"]
    assert size[nnx.Param] == counts["trainable_total"]
    assert size[SparseParam] == counts["prunable_weights"]
    assert size[Alpha] == counts["alphas"]
    assert size[nnx.BatchStat] == counts["bn_buffers"]
    assert len(norms) == counts["bn_layers"]
    assert sum(norm.scale.size + norm.bias.size for norm in norms) == counts["bn_params"]
    assert sum(bias.size for bias in biases) == counts["layer_biases"]
    assert len(prunable_layers(model)) == counts["prunable_layers"]
    parts = ("prunable_weights", "alphas", "bn_params", "layer_biases", "fixup_scalars")
    assert size[nnx.Param] == sum(counts[name] for name in parts)
    assert all((norm.momentum, norm.epsilon) == (0.9, 1e-5) for norm in norms)


def keep_option(monkeypatch, name):
    """Have each layer keep an option of its constructor as an attribute."""

    def keeping(original):
        default = inspect.signature(original).parameters[name].default

        def construct(self, *arguments, **options):
            original(self, *arguments, **options)
            setattr(self, name, options.get(name, default))

        return construct

    for cls in (DCTpSConv, DCTpSLinear):
        monkeypatch.setattr(cls, "__init__", keeping(cls.__init__))


@pytest.mark.parametrize("key", [key for key in NETWORKS if key.endswith("/dct")])
def test_alphas_start_as_in_the_original(key, monkeypatch):
    net = NETWORKS[key]
    keep_option(monkeypatch, "alpha_init")
    initial = {path: layer.alpha_init for path, layer in prunable_layers(abstract_of(net)).items()}
    stored = net["alpha_init"]
    rows = stored["list"] if "list" in stored else [(row[0], stored["all"], "") for row in net["layers"]]
    assert list(initial) == [path for path, _, _ in rows]
    np.testing.assert_allclose(list(initial.values()), [value for _, value, _ in rows], rtol=1e-12)


def test_initial_alphas_reach_the_model():
    expected = [value for _, value, _ in NETWORKS["fixup_resnet20/dct"]["alpha_init"]["list"]]
    model = small("fixup_resnet20", offset="dct")
    found = [layer.alpha[...] for layer in prunable_layers(model).values()]
    np.testing.assert_allclose(found, expected, rtol=1e-7)
    assert not any(np.any(layer.kernel[...]) for layer in prunable_layers(model).values())
    block = model.layer2[0]
    scalars = {name: float(getattr(block, name)[...]) for name in ("bias1a", "bias1b", "bias2a", "bias2b", "scale")}
    assert scalars == {"bias1a": 0, "bias1b": 0, "bias2a": 0, "bias2b": 0, "scale": 1}


# Tracing 1202 layers takes seconds, so that network is checked once; the others at both sizes and offsets.
@pytest.mark.parametrize("offset", [None, "dct"])
@pytest.mark.parametrize("name", [name for name in MODELS if name != "fixup_resnet1202"])
def test_every_network_maps_both_sizes_to_logits(name, offset):
    model = abstract(name, offset)
    assert [output(model, size).shape for size in (32, 64)] == [(2, 10)] * 2
    assert all((layer.alpha is not None) == (offset == "dct") for layer in prunable_layers(model).values())


def test_the_deepest_network():
    model = abstract("fixup_resnet1202", "dct")
    assert len(prunable_layers(model)) == 1202 and output(model, 64).shape == (2, 10)


@pytest.mark.parametrize("name", ["lenet", "resnet18", "resnet50", "vgg11", "mobilenet_v2", "fixup_resnet20"])
def test_frozen_alphas_are_frozen_everywhere(name):
    model = abstract(name, "dct", alpha_trainable=False)
    assert len(variables(model, FrozenAlpha)) == len(prunable_layers(model))
    assert not variables(model, Alpha)
    assert len(variables(abstract(name, "dct"), Alpha)) == len(prunable_layers(model))


@pytest.mark.parametrize("name", ["lenet", "resnet18", "mobilenet_v2", "fixup_resnet20"])
def test_the_initial_alpha(name):
    """Fixup networks have their own start."""
    halved, usual = (
        create_model(name, num_classes=10, offset="dct", alpha_init=value, init="zeros", rngs=nnx.Rngs(0))
        for value in (0.5, 1.0)
    )
    factor = 1.0 if name.startswith("fixup") else 0.5
    for path, layer in prunable_layers(halved).items():
        assert float(layer.alpha[...]) == factor * float(prunable_layers(usual)[path].alpha[...])


@pytest.mark.parametrize("key", NETWORKS)
def test_order_survives_split_and_merge(key):
    model = abstract_of(NETWORKS[key])
    paths = [row[0] for row in NETWORKS[key]["layers"]]
    assert list(prunable_layers(model)) == paths
    graphdef, state = nnx.split(model)
    assert list(prunable_layers(nnx.merge(graphdef, nnx.to_pure_dict(state)))) == paths


@pytest.mark.parametrize(("stem", "shape", "positions"), [("cifar", (3, 3), 64), ("imagenet", (7, 7), 16)])
def test_a_stem_of_imagenet_takes_a_quarter_of_the_positions(stem, shape, positions):
    model = abstract("resnet18", width=8, stem=stem)
    assert prunable_layers(model)["conv1"].kernel_shape == (*shape, 3, 8)
    entered = []

    def noted(stage, x, running):
        entered.append(x.shape)
        return run_blocks(stage, x, running)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet, "run_blocks", noted)
        nnx.eval_shape(lambda model, x: model(x), model, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    assert entered[0] == (1, positions, positions, 8)


def test_width_and_stable():
    found = prunable_layers(abstract("resnet18", width=8)).items()
    entry = next(entry for entry in reference.index("parity_index") if entry["network"] == "resnet18")
    assert [[path, list(layer.kernel_shape)] for path, layer in found] == entry["layers"]
    for stable, scale in ((True, 1 / 4), (False, 1.0)):  # resnet34 has 3 + 4 + 6 + 3 blocks
        model = abstract("resnet34", stable=stable)
        stages = (model.layer1, model.layer2, model.layer3, model.layer4)
        assert {block.residual_scale for stage in stages for block in stage} == {scale}


def test_blocks_scale_their_residual_branch(drawn):
    parts = make_parts(init="numpy", running=Running(), rngs=nnx.Rngs(0))
    block = BasicBlock(parts, 2, 2, 1, 0.25)
    block.eval()
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 4, 2)), jnp.float32)
    residual = block.bn2(block.conv2(nnx.relu(block.bn1(block.conv1(x)))))
    assert np.any(np.asarray(residual) < 0)
    np.testing.assert_allclose(block(x), nnx.relu(residual * 0.25 + x), rtol=1e-5, atol=1e-6)


def test_dtypes():
    model = abstract("resnet18", "dct", width=2, dtype=jnp.bfloat16)
    assert output(model, 32).dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in variables(model, nnx.Param)} == {np.dtype("float32")}
    for name in ("resnet18", "fixup_resnet20"):
        half = abstract(name, "dct", param_dtype=jnp.bfloat16)
        assert {leaf.dtype for leaf in variables(half, nnx.Param)} == {np.dtype(jnp.bfloat16)}
    # flax keeps BatchNorm's statistics in float32, so that only a network without them stays in half precision.
    assert output(half, 32, jnp.bfloat16).dtype == jnp.bfloat16


@pytest.mark.parametrize("shape", [(3, 3, 64, 100), (3, 3, 1, 6000), (600, 90)])
def test_normal_initialisers_are_untruncated_and_scaled_as_in_pytorch(shape):
    receptive = math.prod(shape[:-2])
    fan_in, fan_out = receptive * shape[-2], receptive * shape[-1]
    expected = {
        "kaiming_normal": math.sqrt(2 / fan_in),
        "kaiming_normal_fan_out": math.sqrt(2 / fan_out),
        "xavier_normal": math.sqrt(2 / (fan_in + fan_out)),
    }
    for name, std in expected.items():
        values = np.asarray(INITIALIZERS[name](jax.random.key(1), shape, jnp.float32))
        np.testing.assert_allclose(values.std(), std, rtol=0.015, err_msg=name)
        assert abs(values.mean()) < 0.02 * std
        # 4.55 % of a normal lies beyond two deviations; a truncated one ends at 2.27.
        assert 0.042 < np.mean(np.abs(values) > 2 * std) < 0.049 and np.abs(values).max() > 3.5 * std
    assert set(INITIALIZERS) == {*expected, "orthogonal", "zeros"}


@pytest.mark.parametrize("shape", [(3, 3, 4, 20), (2, 2, 3, 20), (8, 8)])
def test_orthogonal_initialiser(shape):
    matrix = np.asarray(INITIALIZERS["orthogonal"](jax.random.key(1), shape, jnp.float32)).reshape(-1, shape[-1])
    gram = matrix.T @ matrix if len(matrix) >= shape[-1] else matrix @ matrix.T
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-5)


def test_init_option_reaches_every_kernel(drawn, monkeypatch):
    shapes = [layer.kernel_shape for layer in prunable_layers(abstract("resnet18", init="numpy")).values()]
    assert [shape for _, shape in drawn] == shapes and len(shapes) == 21
    drawn.clear()
    abstract("resnet18", "dct", init="numpy")
    assert not drawn, "with an offset S starts at zero"
    monkeypatch.setitem(INITIALIZERS, "kaiming_normal", INITIALIZERS["numpy"])
    abstract("lenet")
    assert len(drawn) == 5, "kaiming_normal is the default"


def test_fixup_start(monkeypatch):
    keep_option(monkeypatch, "kernel_init")
    model = abstract("fixup_resnet20")
    found, kernels = prunable_layers(model), {}
    for path in (
        "conv1",
        "layer1.0.conv1",
        "layer2.0.conv1",
        "layer3.1.conv1",
        "layer2.0.conv2",
        "layer1.1.conv2",
        "fc",
    ):
        kernel = found[path].kernel_init(jax.random.key(2), found[path].kernel_shape, jnp.float32)
        kernels[path] = np.asarray(kernel)
    stem = kernels.pop("conv1") * math.sqrt(27)
    assert 0.95 < np.abs(stem).max() <= 1 and abs(stem.std() * math.sqrt(3) - 1) < 0.1
    for path, kernel in kernels.items():
        if path.endswith("conv1"):
            std = math.sqrt(2 / (9 * kernel.shape[-1] * 9))  # nine blocks
            np.testing.assert_allclose(kernel.std(), std, rtol=0.05, err_msg=path)
        else:
            assert not kernel.any(), path


def test_seeds(drawn):
    def weights(seed):
        return [np.asarray(leaf) for leaf in variables(small("lenet", rngs=nnx.Rngs(seed)), nnx.Param)]

    for first, again, other in zip(weights(1), weights(1), weights(2), strict=True):
        np.testing.assert_array_equal(first, again)
        assert np.any(first != other)
    small("resnet18", init="numpy")
    assert len({jax.random.key_data(key).tobytes() for key, _ in drawn}) == 21, "each layer draws from a key of its own"


def test_only_training_mode_changes_the_statistics(drawn):
    model = small(init="numpy")
    x = jnp.asarray(np.random.default_rng(0).normal(2, 3, size=(4, 8, 8, 3)), jnp.float32)
    run = nnx.jit(lambda model, x: model(x))
    start = [np.asarray(leaf) for leaf in variables(model, nnx.BatchStat)]
    model.eval()
    first = run(model, x)
    for before, after in zip(start, variables(model, nnx.BatchStat), strict=True):
        np.testing.assert_array_equal(before, after)
    model.train()
    trained = run(model, x)
    for before, after in zip(start, variables(model, nnx.BatchStat), strict=True):
        assert np.all(before != after)
    model.eval()
    assert not np.allclose(first, trained) and not np.allclose(first, run(model, x))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet17", {}, "no network 'resnet17' \\(did you mean 'resnet18'\\?\\); the networks are: lenet, resnet18,"),
        ("zzzz", {}, "there is no network 'zzzz'[;.:] .*networks are: lenet, .*fixup_resnet1202$"),
        (
            "lenet",
            {"width": 4},
            "lenet has no option 'width'; its options are: none; create_model has these .*: offset, image_size, ",
        ),
        (
            "resnet18",
            {"depth": 4},
            "resnet18 has no option 'depth'; its options are: width, stable, stem; create_model",
        ),
        ("resnet18", {"width": 0}, "width is 0; it must be a whole number of at least 1"),
        ("resnet18", {"width": "8"}, "width is '8'; it must be a whole number"),
        ("resnet18", {"stable": "no"}, "stable is 'no'; it must be True or False"),
        ("resnet18", {"stem": ["cifar"]}, r"stem is \['cifar'\]; it must be one of: cifar, imagenet"),
        ("lenet", {"remat": "no"}, "remat is 'no'; it must be True or False"),
        ("lenet", {"min_loop": -1}, "min_loop is -1; it must be a whole number of at least 1, or 0"),
        ("lenet", {"init": []}, r"init is \[\]; it must be one of"),
        ("lenet", {"image_size": "32"}, "image_size is '32'; every size must be a whole number"),
        ("lenet", {"image_size": ()}, r"image_size is \(\); it must be one number, or \(height"),
        ("lenet", {"image_size": (32, 32, 3)}, r"image_size is \(32, 32, 3\); it must be one number, or \(height"),
        ("resnet18", {"stem": "large"}, "stem is 'large'; it must be one of: cifar, imagenet"),
        ("lenet", {"init": "he"}, "init is 'he'; it must be one of: kaiming_normal, .*zeros$"),
        (
            "lenet",
            {"offset": "DCT"},
            r"offset is 'DCT' \(did you mean 'dct'\?\); it must be None or one of: dct, hadamard",
        ),
        ("lenet", {"num_classes": 0}, "num_classes is 0; it must be a whole number of at least 1"),
        ("lenet", {"image_size": 28}, "image_size is 28; lenet needs images of at least 32×32"),
        ("vgg11", {"image_size": 15}, "vgg11 needs images of at least 16×16"),
        ("mobilenet_v2", {"image_size": 4}, "mobilenet_v2 needs images of at least 8×8"),
        ("lenet", {"image_size": 0}, "image_size is 0; every size must be a whole number of at least 1"),
    ],
)
def test_mistakes_are_named(name, options, message):
    with pytest.raises(UserError, match=message):
        create_model(name, **{"num_classes": 10, "rngs": nnx.Rngs(0), **options})


@pytest.mark.parametrize("name", ["lenet", "resnet18", "vgg11", "mobilenet_v2", "fixup_resnet20"])
def test_the_smallest_image_works(name):
    model = abstract(name)
    assert output(model, model.MIN_IMAGE_SIZE).shape == (2, 10)


def test_the_size_of_images_may_be_a_list():
    graphs = [
        nnx.graphdef(
            nnx.eval_shape(lambda size=size: create_model("lenet", num_classes=10, image_size=size, rngs=nnx.Rngs(0)))
        )
        for size in ([32, 40], (32, 40))
    ]
    assert graphs[0] == graphs[1]
