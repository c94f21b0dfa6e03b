"""Arguments of an obviously wrong type: every public function answers in one sentence that names the argument."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

import inspect
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import dctps_jax
from dctps_jax import (
    DCTpSConv,
    DCTpSConvTranspose,
    DCTpSEinsum,
    DCTpSEmbed,
    DCTpSLinear,
    DCTpSLinearGeneral,
    UserError,
    convert,
    export_delta,
    pruning,
)
from dctps_jax.pruning import apply_masks, get_masks, prune, random_pattern_supports, save_masks


class Mlp(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(8, 8, rngs=rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.hidden(x)))


RNGS = nnx.Rngs(0)
BASE, WHOLE = Mlp(RNGS), convert(Mlp(RNGS), density=1.0, offset=None)
SHAPES = {"a": (8, 8), "b": (8, 4)}
TREE, TREE_MASKS = {"w": jnp.ones((2, 2))}, {"w": np.eye(2) > 0}
SGD, BATCH = optax.sgd(0.1), (jax.random.normal(jax.random.key(1), (16, 8)), jnp.arange(16) % 4)
MASKS = {"hidden": np.eye(8) > 0}
MOVES = {"end_step": 9, "method": "rigl", "update_every": 2, "drop_fraction": 0.3}
FIXED = {"dense_layers": (), "layer_densities": (), "pattern": ""}
LAYER = {"offset": "dct", "alpha_init": 1.0, "alpha_trainable": True, "rngs": RNGS}
SCORE = {"num_steps": 1, "schedule": "exp", "loss": "cross_entropy", "scope": "global"}


def execution_report(model):
    return dctps_jax.execution_report(model, BATCH[0])  # the network answers for what it is given


def sparse_optimizer(params, **arguments):
    return dctps_jax.sparse_optimizer(**arguments).init(params)


def dynamic_sparse(params, **arguments):
    return dctps_jax.dynamic_sparse(**arguments).init(params)


def moved(gradients):
    optimizer = dctps_jax.dynamic_sparse(SGD, TREE_MASKS, **MOVES | {"update_every": 1})
    return optimizer.move(gradients, optimizer.init(TREE), TREE)


# Name → a function, and arguments that it takes.
CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "convert": (convert, {"model": BASE, "density": 0.3, "method": "epl", "exclude": (), "offset": "dct", "key": 0,
                          "form": "compact", "alpha_init": 1.0, "alpha_trainable": True, "embeddings": False} | FIXED),
    "convert by a score": (convert, {"model": BASE, "density": 0.3, "method": "snip", "offset": None, "batch": BATCH,
                                     "allocation": "epl"} | SCORE),
    "to_plain": (dctps_jax.to_plain, {"model": WHOLE}),
    "conversion_report": (dctps_jax.conversion_report, {"model": WHOLE}),
    "execution_report": (execution_report, {"model": WHOLE}),
    "apply_delta": (dctps_jax.apply_delta, {"model": BASE, "file": "delta.safetensors"}),
    "export_delta": (export_delta, {"model": convert(BASE, density=0.3, offset="frozen"), "file": "delta.safetensors"}),
    "save_network": (dctps_jax.save_network, {"model": WHOLE, "file": "network.safetensors"}),
    "load_network": (dctps_jax.load_network, {"model": WHOLE, "file": "network.safetensors"}),
    "unmasked_copy": (dctps_jax.unmasked_copy, {"model": WHOLE}),
    "keep_masked": (dctps_jax.keep_masked, {"tree": TREE, "masks": TREE_MASKS}),
    "sparse_optimizer": (sparse_optimizer, {"optimizer": SGD, "masks": TREE_MASKS, "params": TREE}),
    "dynamic_sparse": (dynamic_sparse, {"optimizer": SGD, "masks": TREE_MASKS, "params": TREE} | MOVES),
    "DynamicSparseOptimizer": (dctps_jax.DynamicSparseOptimizer,
                               {"model": convert(BASE, density=0.3, form="masked"), "tx": SGD, "wrt": nnx.Param}
                               | MOVES),
    "allocate": (pruning.allocate, {"shapes": SHAPES, "density": 0.3, "method": "epl", "stacks": {}} | FIXED),
    "apply_masks": (apply_masks, {"model": WHOLE, "masks": get_masks(WHOLE), "form": "masked"}),
    "get_masks": (get_masks, {"model": WHOLE}),
    "digest_of_masks": (pruning.digest_of_masks, {"masks": MASKS}),
    "load_masks": (pruning.load_masks, {"path": "masks.npz"}),
    "load_run_masks": (pruning.load_run_masks, {"folder": "."}),
    "save_masks": (save_masks, {"path": "more.npz", "masks": MASKS}),
    "mask_of_support": (pruning.mask_of_support, {"support": np.arange(3), "shape": (4, 4)}),
    "prune": (prune, {"model": WHOLE, "method": "epl", "density": 0.3, "key": 0} | FIXED),
    "prune by a score": (prune, {"model": WHOLE, "method": "snip", "density": 0.3, "key": 0, "batch": BATCH,
                                 "allocation": "epl"} | FIXED | SCORE),
    "random_masks": (pruning.random_masks, {"key": 0, "shapes": SHAPES, "counts": {"a": 3, "b": 2}}),
    "random_supports": (pruning.random_supports, {"key": 0, "shapes": SHAPES, "counts": {"a": 3, "b": 2},
                                                  "stacks": {}}),
    "random_pattern_supports": (random_pattern_supports, {"key": 0, "shapes": SHAPES, "density": 0.5}
                                | FIXED | {"pattern": "2:4"}),
    "DCTpSConv": (dctps_jax.DCTpSConv, {"in_features": 4, "out_features": 8, "kernel_size": (3, 3), "strides": 1,
                                        "padding": "SAME", "kernel_dilation": 1, "feature_group_count": 1,
                                        "use_bias": True, "mask": np.ones((3, 3, 4, 8))} | LAYER),
    "DCTpSLinear": (dctps_jax.DCTpSLinear, {"in_features": 4, "out_features": 8, "support": np.arange(4)} | LAYER),
    "DCTpSEmbed": (dctps_jax.DCTpSEmbed, {"num_embeddings": 4, "features": 8} | LAYER),
    "DCTpSLinearGeneral": (dctps_jax.DCTpSLinearGeneral, {"in_features": 4, "out_features": (2, 3), "axis": -1,
                                                          "batch_axis": {}} | LAYER),
    "DCTpSEinsum": (dctps_jax.DCTpSEinsum, {"einsum_str": "ab,bc->ac", "kernel_shape": (4, 8), "bias_shape": (8,)}
                    | LAYER),
    "DCTpSConvTranspose": (dctps_jax.DCTpSConvTranspose, {"in_features": 4, "out_features": 8, "kernel_size": (3,),
                                                          "strides": 1, "padding": "SAME"} | LAYER),
}  # fmt: skip
CASES = [(name, argument) for name, (_, arguments) in CALLS.items() for argument in arguments]
BAD = [3, None, "x", [1], {"a": 1}, True, 1.5, np.ones(3), jnp.ones(2), Mlp, b"x", float("nan"), -1, (), [[1], [2, 3]]]


@pytest.fixture(autouse=True)
def in_a_folder_with_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_masks("masks.npz", MASKS)
    export_delta(CALLS["export_delta"][1]["model"], "delta.safetensors")
    dctps_jax.save_network(WHOLE, "network.safetensors")


@pytest.mark.parametrize("name", CALLS)
def test_the_arguments_that_the_others_are_tried_beside_are_right(name):
    function, arguments = CALLS[name]
    function(**arguments)


# What takes anything: a tree that is an object is a tree of one array.
@pytest.mark.parametrize(("name", "argument"), [case for case in CASES if case != ("mask_of_support", "support")])
def test_an_object_of_no_type_is_one_sentence(name, argument):
    function, arguments = CALLS[name]
    with pytest.raises(UserError) as error:
        function(**arguments | {argument: object()})
    assert "\n" not in str(error.value) and "0x" not in str(error.value)


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_any_other_value_passes_or_is_one_sentence(name, argument):
    function, arguments = CALLS[name]
    for bad in BAD:
        try:
            function(**arguments | {argument: bad})
        except UserError as error:
            assert "\n" not in str(error), (bad, str(error))


def test_every_public_function_is_tried():
    tried = {name.split(" ")[0] for name in CALLS}
    others = {"compiler_options", "materialized", "UserError", "is_pattern", "check_masks", "check_density"}
    internal = {"check_method", "method_names", "contradiction", "density_asked", "trains_all_weights", "parse_pattern"}
    for module in (dctps_jax, pruning):
        functions = [
            name
            for name in module.__all__
            if callable(getattr(module, name)) and not _is_variable(getattr(module, name))
        ]
        assert set(functions) <= tried | others | internal
    assert not pruning.is_pattern(object()) and not pruning.is_pattern(3)


def _is_variable(found):
    return inspect.isclass(found) and issubclass(found, nnx.Variable)


def linear(**settings):
    return DCTpSLinear(4, 8, rngs=nnx.Rngs(0), **settings)


CONV = DCTpSConv(4, 3, (3, 3), rngs=nnx.Rngs(0))
TRANSPOSED = DCTpSConvTranspose(4, 3, (3, 3), rngs=nnx.Rngs(0))
EMBED = DCTpSEmbed(5, 4, rngs=nnx.Rngs(0))
GENERAL = DCTpSLinearGeneral((2, 4), 3, axis=(-2, -1), rngs=nnx.Rngs(0))
EINSUM = DCTpSEinsum("nta,ab->ntb", (4, 6), rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: convert(Mlp, density=0.1), r"model is the class Mlp; give a network .*, e.g. Mlp\(rngs=nnx.Rngs"),
        (lambda: prune(Mlp, "epl", 0.1, key=0), "model is the class Mlp"),
        (lambda: get_masks(3), "model is 3; it must be a network, an nnx.Module"),
        (lambda: convert(BASE, density=0.1, exclude=3), "exclude is 3; it must be path patterns"),
        (lambda: convert(BASE, density=0.1, exclude=[None]), r"exclude is \[None\]; it must be path patterns"),
        (lambda: convert(BASE, density=True), "density is True; it must be a number above 0"),
        (lambda: convert(BASE, density=jnp.array(True)), "density is an array of bool"),
        (
            lambda: convert(BASE, density=1.0, method="unifrom"),
            r"no pruning method 'unifrom' \(did you mean 'uniform'\?\)",
        ),
        (lambda: convert(BASE, density=0.1, embedings=True), r"no option 'embedings' \(did you mean 'embeddings'\?\)"),
        (
            lambda: convert(BASE, density=0.1, offset="DCT"),
            r"offset is 'DCT' \(did you mean 'dct'\?\); it must be one of: dct, hadamard, frozen",
        ),
        (
            lambda: convert(BASE, density=0.1, method="synflow"),
            "synflow needs the shape of an input: give batch=",
        ),
        (lambda: convert(BASE, density=1.0, dense_layers="headd"), "no layer matches 'headd'"),
        (lambda: convert(BASE, density=1.0, pattern="2:4"), "pattern is '2:4', which keeps 0.5 .* density is 1"),
        (lambda: convert(BASE, density=1.0, form="sparse"), "form is 'sparse'; it must be one of: masked, compact"),
        (lambda: convert(BASE, density=0.1, key=-1), "key is -1; a seed must be a whole number from 0"),
        (lambda: convert(BASE, density=0.1, key=2**32), "key is 4294967296; a seed"),
        (lambda: convert(BASE, density=0.1, embeddings="no"), "embeddings is 'no'; it must be True or False"),
        (lambda: apply_masks(WHOLE, [1]), r"masks is \[1\]; it must be a dict of masks by"),
        (lambda: apply_masks(WHOLE, None), "masks is None; it must be a dict of masks"),
        (lambda: apply_masks(WHOLE, {"head": [1]}), r"the mask of head is \[1\]; it must be an array of booleans"),
        (lambda: prune(BASE, "epl", 0.1, key=0), r"no prunable layers; make them .* convert\(model, density=…\)"),
        (lambda: prune(nnx.Module(), "epl", 0.1, key=0), "the network has no prunable layers"),
        (lambda: apply_masks(BASE, MASKS), "the network has no prunable layers"),
        (lambda: convert(nnx.Module(), density=0.1), "the model has no layer to convert"),
        (lambda: dctps_jax.apply_delta(BASE, 3), "file is 3; it must be the path of a file"),
        (lambda: dctps_jax.DCTpSLinear(4, 8, rngs=0), "rngs is 0; it must be an nnx.Rngs"),
        (lambda: random_pattern_supports(0, SHAPES, "", 0.5), "pattern is ''; it must be \"N:M\""),
        (lambda: linear(param_dtype=jnp.int8), "param_dtype is the class int8; it must be a type of floating-point"),
        (lambda: DCTpSEmbed(4, 8, param_dtype="foo", rngs=nnx.Rngs(0)), "param_dtype is 'foo'; it must be a type of"),
        (lambda: linear(param_dtype=None), "param_dtype is None; it must be a type of floating-point"),
        (
            lambda: linear(dtype="bf16"),
            "dtype is 'bf16'; it must be a type of floating-point numbers, e.g. jnp.float32",
        ),
        (lambda: linear()(jnp.ones((2, 5))), r"inputs have shape \(2, 5\); .* with 4 features in its last axis$"),
        (lambda: linear()(jnp.ones(())), r"inputs have shape \(\); they must be an array with 4 features"),
        (lambda: CONV(jnp.ones((2, 6, 6, 5))), r"with 4 features in its last axis and at least 3 axes"),
        (lambda: CONV(jnp.ones(4)), r"inputs have shape \(4,\); .* at least 3 axes"),
        (lambda: CONV([1.0]), r"the inputs have no shape, they are \[1.0\]"),
        (lambda: TRANSPOSED(jnp.ones((6, 5))), r"inputs have shape \(6, 5\); .* at least 3 axes"),
        (lambda: EMBED.attend(jnp.ones((2, 5))), r"inputs have shape \(2, 5\); .* 4 features"),
        (lambda: EMBED([1, 2]), r"inputs of an embedding are \[1, 2\]; they must be an array of integers"),
        (lambda: GENERAL(jnp.ones(4)), r"inputs have shape \(4,\); .* that has the axes \(-2, -1\), each of them once"),
        (lambda: EINSUM(jnp.ones(4)), r"inputs have shape \(4,\); for the einsum 'nta,ab->ntb' .* with 3 axes"),
    ],
)
def test_the_sentence_says_what_is_allowed(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_masks_that_keep_nothing_are_refused():
    nothing = {path: np.zeros_like(mask) for path, mask in get_masks(WHOLE).items()}
    for form in pruning.FORMS:
        model = nnx.clone(WHOLE)
        with pytest.raises(UserError, match="no mask keeps a weight"):
            apply_masks(model, nothing, form)
        apply_masks(model, {"head": nothing["head"]}, form)  # a layer may have none
        assert get_masks(model)["hidden"].all() and not get_masks(model)["head"].any()
    for call in (sparse_optimizer, dynamic_sparse):
        options = MOVES if call is dynamic_sparse else {}
        with pytest.raises(UserError, match="no mask keeps a weight"):
            call(TREE, optimizer=SGD, masks={"w": np.zeros((2, 2), bool)}, **options)


def test_a_sentence_shows_no_whole_array():
    with pytest.raises(UserError) as error:
        prune(WHOLE, "epl", np.ones((100, 100)), key=0)
    assert re.match(r"density is an array of float64 of shape \(100, 100\); ", str(error.value))


def test_seeds_make_the_masks_that_keys_make():
    for seed in (0, 7, 2**32 - 1):
        by_seed, by_key = (pruning.random_masks(key, SHAPES, {"a": 9, "b": 4}) for key in (seed, jax.random.key(seed)))
        for path, mask in by_seed.items():
            np.testing.assert_array_equal(mask, by_key[path])
