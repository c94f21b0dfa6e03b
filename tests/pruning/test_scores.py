"""Scores and iterative pruning against the masks that the authors' own codes choose, bit for bit in float64."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dctps_jax import UserError
from dctps_jax.models import create_model, prunable_layers
from dctps_jax.ops import compiler
from dctps_jax.pruning import prune
from dctps_jax.pruning.by_score import score_function, thin_out
from dctps_jax.pruning.scored_network import ScoredNetwork
from dctps_jax.pruning.scores import SCORES, Score, markdown_table
from dctps_jax.pruning.selection import top_k_global
from dctps_jax.torch_compat import load_state_dict, to_state_dict
from tests import reference_data as reference
from tests.native import XLA_DEFAULTS
from tests.small_networks import SmallNet, small_batch

NETWORKS = {entry["network"]: entry for entry in reference.index("prune_index")}
OURS = {"dctps1_itersnip": "iter_snip", "dctps2_graspit": "grasp_it", "naver3_force": "force"}
AUTHORS_OF_SYNFLOW = {"synflow": "synflow", "snip": "snip", "grasp": "grasp", "mag": "magnitude"}
# Every run on LeNet; of the slower ResNet18 those with the training loss.
RUNS = [("lenet", run["id"]) for run in NETWORKS["lenet"]["runs"]] + [
    ("resnet18", run["id"]) for run in NETWORKS["resnet18"]["runs"] if "/nll/" not in run["id"]
]


@pytest.fixture
def optimised(monkeypatch):
    """Scores are computed by optimised programs. In double precision their time is not the compiler's."""
    monkeypatch.setattr(compiler, "CPU", XLA_DEFAULTS)


@cache
def problem(network: str):
    """Return the network with the stored initial weights, and the pruning batch, in float64."""
    entry = NETWORKS[network]
    initial = reference.arrays(entry["init_file"].removesuffix(".npz"))
    options = {"width": entry["kwargs"]["in_planes"]} if entry["kwargs"] else {}
    model = create_model(network, num_classes=10, init="zeros", rngs=nnx.Rngs(0), **options)
    state_dict = to_state_dict(model)
    for name, key, _, shape, axes, _ in reference.index("name_map")["maps"][f"{network}/None"]:
        if key in initial:  # BatchNorm's buffers are fresh
            value = initial[key].astype(np.float64)
            state_dict[name] = value.transpose(np.argsort(axes)) if axes else value.reshape(shape)
    load_state_dict(model, state_dict)
    images = reference.normalised(reference.arrays("images")["x"][initial["batch_rows"]])
    return model, (jnp.asarray(images, np.float64), jnp.asarray(initial["labels"]))


@cache
def scores_of(network: str, method: str, loss: str):
    """Return a score function that scores the dense network once: every run begins with it."""
    model, batch = problem(network)
    compute = score_function(model, method, jax.random.key(0), batch, loss)
    dense = {}

    def scores(masks, step):
        if not all(mask.all() for mask in masks.values()):
            return compute(masks, step)
        if not dense:
            dense.update(compute(masks, step))
        return {path: score.copy() for path, score in dense.items()}

    return scores


def settings_of(run: dict, total: int) -> tuple[str, str, list[int]]:
    """Return method, loss and the authors' numbers of kept weights after each step."""
    family, *rest = run["id"].split("/")
    density = run["density"]
    if family.startswith("synaptic_"):
        steps = run["epochs"]
        counts = [total - int((1 - density ** ((step + 1) / steps)) * total) for step in range(steps)]
        return AUTHORS_OF_SYNFLOW[family.removeprefix("synaptic_")], "cross_entropy", counts
    steps = run["num_steps"]
    if run["mode"] == "exp":
        fractions = [np.exp((step + 1) * np.log(density) / steps) for step in range(steps)]
    else:
        fractions = [1 - (step + 1) * (1 - density) / steps for step in range(steps)]
    loss = {"nll": "nll_logits", "ce": "cross_entropy"}[rest[0]]
    return OURS[family], loss, [int(total * fraction) for fraction in fractions]


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize(("network", "identity"), RUNS)
def test_masks_equal_the_authors_bit_for_bit(network, identity):
    entry = NETWORKS[network]
    run = next(run for run in entry["runs"] if run["id"] == identity)
    stored = reference.arrays(entry["masks_file"].removesuffix(".npz"))
    shapes = {path: tuple(shape) for path, shape in entry["layers"]}
    method, loss, counts = settings_of(run, entry["total"])
    with jax.enable_x64(True):
        masks = thin_out(
            scores_of(network, method, loss),
            lambda scores, step, allowed: top_k_global(scores, counts[step], allow_zero=step < len(counts) - 1),
            len(counts),
            {path: np.ones(shape, bool) for path, shape in shapes.items()},
            regrow=method == "force",
        )
    expected = reference.network_masks(stored.get(f"{identity}/mask_f64", stored[f"{identity}/mask"]), entry["layers"])
    differing = {path: int((masks[path] != expected[path]).sum()) for path in shapes}
    assert not any(differing.values()), differing


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("method", ["synflow", "snip", "grasp"])
def test_first_scores_equal_the_authors(method):
    stored = reference.arrays("prune_lenet_masks")
    with jax.enable_x64(True):
        dense = {path: np.ones(shape, bool) for path, shape in NETWORKS["lenet"]["layers"]}
        scores = scores_of("lenet", method, "cross_entropy")(dense, 0)
    total = sum(score.sum() for score in scores.values())
    norm = {"synflow": 1, "snip": total, "grasp": abs(total) + 1e-10}[method]
    compared = [path for path in scores if f"scores/{method}/{path}" in stored]
    assert len(compared) == 4  # all but the largest layer
    for path in compared:
        expected = stored[f"scores/{method}/{path}"].reshape(scores[path].shape)
        # Stored as float32, rounded by up to 6e-8.
        np.testing.assert_allclose(scores[path] / norm, expected, rtol=1.2e-7, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("offset", [None, "dct"])
@pytest.mark.parametrize(
    "method", ["snip", "grasp", "iter_snip", "force", "grasp_it", "synflow", "magnitude", "random"]
)
def test_every_method_keeps_the_exact_count_and_leaves_the_model_alone(method, offset):
    model = SmallNet(offset)
    before = nnx.to_flat_state(nnx.state(model))
    masks = prune(model, method, 0.05, key=jax.random.key(1), batch=small_batch(), num_steps=2)
    total = sum(math.prod(layer.kernel_shape) for layer in prunable_layers(model).values())
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.05 * total)
    assert all(layer.mask is None for layer in prunable_layers(model).values())
    for (path, variable), (_, other) in zip(nnx.to_flat_state(nnx.state(model)), before, strict=True):
        np.testing.assert_array_equal(variable[...], other[...], err_msg=str(path))


def test_scores_of_dct_layers_are_those_of_the_effective_kernel():
    # A plain network with the kernels α·D + S has the same function, and so the same scores.
    with_offset = SmallNet("dct")
    plain = SmallNet(None)
    for path, layer in prunable_layers(with_offset).items():
        prunable_layers(plain)[path].kernel.set_value(layer.effective_kernel())
    dense = {path: np.ones(layer.kernel_shape, bool) for path, layer in prunable_layers(plain).items()}
    for method in ("snip", "grasp", "grasp_it", "synflow", "magnitude"):
        ours, theirs = (
            score_function(model, method, jax.random.key(0), small_batch(), "cross_entropy")(dense, 0)
            for model in (with_offset, plain)
        )
        for path in dense:
            scale = np.abs(theirs[path]).max()
            np.testing.assert_allclose(ours[path], theirs[path], rtol=0, atol=2e-3 * scale, err_msg=f"{method} {path}")


def test_gradients_are_averaged_over_batches():
    model = SmallNet(None)
    both = prune(model, "snip", 0.05, key=jax.random.key(0), batch=lambda step: [small_batch(0), small_batch(1)])
    images, labels = (jnp.concatenate(parts) for parts in zip(small_batch(0), small_batch(1), strict=True))
    joined = prune(model, "snip", 0.05, key=jax.random.key(0), batch=(images, labels))
    agreeing = np.mean([np.mean(both[path] == joined[path]) for path in both])
    assert agreeing > 0.999


def test_grasp_equals_an_explicit_hessian():
    class Tiny(nnx.Module):
        def __init__(self, rngs):
            from dctps_jax import DCTpSLinear

            self.first = DCTpSLinear(3, 4, offset=None, use_bias=False, rngs=rngs)
            self.second = DCTpSLinear(4, 2, offset=None, use_bias=False, rngs=rngs)

        def __call__(self, x):
            return self.second(jnp.tanh(self.first(x)))

    model = Tiny(nnx.Rngs(0))
    images, labels = jax.random.normal(jax.random.key(0), (5, 3)), jnp.array([0, 1, 1, 0, 1])
    flat = jnp.concatenate([model.first.kernel[...].ravel(), model.second.kernel[...].ravel()])

    def loss(flat):
        logits = jnp.tanh(images @ flat[:12].reshape(3, 4)) @ flat[12:].reshape(4, 2) / 200
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()

    expected = jax.hessian(loss)(flat) @ jax.grad(loss)(flat) * flat
    dense = {"first": np.ones((3, 4), bool), "second": np.ones((4, 2), bool)}
    scores = score_function(model, "grasp", jax.random.key(0), (images, labels), "cross_entropy")(dense, 0)
    ours = np.concatenate([scores["first"].ravel(), scores["second"].ravel()])
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["resnet152", "vgg19"])
def test_synflow_is_finite_in_float32_at_full_width(name):
    model = create_model(name, num_classes=10, rngs=nnx.Rngs(0))
    images = jnp.zeros((1, 32, 32, 3)), jnp.zeros((1,), jnp.int32)
    masks = prune(model, "synflow", 0.001, key=jax.random.key(0), batch=images, num_steps=1)
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.001 * sum(mask.size for mask in masks.values()))


def test_synflow_rescaling_keeps_the_order():
    model = SmallNet(None)
    dense = {path: np.ones(layer.kernel_shape, bool) for path, layer in prunable_layers(model).items()}
    scores = score_function(model, "synflow", jax.random.key(0), small_batch(), "cross_entropy")(dense, 0)
    for layer in prunable_layers(model).values():
        layer.kernel.set_value(jnp.abs(layer.kernel[...]))
    model.eval()
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def output(params):
        return nnx.merge(graph, params, rest, copy=True)(jnp.ones((1, 32, 32, 3))).sum()

    gradients = nnx.merge(graph, jax.grad(output)(params), rest)
    ratios = [
        scores[path] / np.asarray(prunable_layers(gradients)[path].kernel[...] * layer.kernel[...])
        for path, layer in prunable_layers(model).items()
    ]
    ratios = np.concatenate([ratio.ravel() for ratio in ratios])
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-3)


@pytest.mark.usefixtures("small_families")
def test_fixup_networks_without_offset_are_refused():
    model = create_model("fixup_small", num_classes=10, rngs=nnx.Rngs(0))
    for method in ("snip", "iter_snip", "force"):
        with pytest.raises(UserError, match="have a score above 0"):
            prune(model, method, 0.05, key=jax.random.key(0), batch=small_batch(), num_steps=1)


def test_scores_that_are_not_finite_are_refused():
    images, labels = small_batch()
    with pytest.raises(UserError, match="not finite"):
        prune(SmallNet(None), "snip", 0.1, key=jax.random.key(0), batch=(images * np.nan, labels))


def test_a_missing_batch_and_an_unknown_option_are_named():
    with pytest.raises(UserError, match="give batch"):
        prune(SmallNet(None), "snip", 0.1, key=jax.random.key(0))
    with pytest.raises(UserError, match=r"'steps'.*num_steps"):
        prune(SmallNet(None), "snip", 0.1, key=jax.random.key(0), batch=small_batch(), steps=3)
    with pytest.raises(UserError, match="schedule is 'cosine'"):
        prune(SmallNet(None), "snip", 0.1, key=jax.random.key(0), batch=small_batch(), schedule="cosine")


def test_a_new_score_is_one_function_and_one_line(monkeypatch):
    def gradient_magnitude(network, masks, batches):
        for path, gradient in network.mean_gradients(masks, batches).items():
            yield path, jnp.abs(gradient)

    monkeypatch.setitem(SCORES, "gradient", Score(gradient_magnitude, "this test"))
    model, options = SmallNet(None), {"key": jax.random.key(0), "batch": small_batch()}
    masks = prune(model, "gradient", 0.05, **options)
    network = ScoredNetwork(model, jax.random.key(0), loss="cross_entropy")
    dense = {path: jnp.ones(mask.shape, bool) for path, mask in masks.items()}
    gradients = network.mean_gradients(dense, [small_batch()])
    kept, removed = (
        np.concatenate([np.abs(gradients[path])[mask == is_kept] for path, mask in masks.items()])
        for is_kept in (True, False)
    )
    assert kept.min() >= removed.max()


def test_the_table_of_scores_is_made_from_the_registry():
    table = markdown_table().splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == [f"| `{name}`" for name in SCORES]
    assert "| `grasp` | ``K ⊙ H ∂L/∂K``" in table[3] and "of the logits ÷ 200" in table[3]
    assert all(line.replace("\\|", "").count("|") == 7 for line in table)
