"""Theoretical operations, counted by hand."""

import math
from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx
from flax.nnx.nn import dtypes

from dctps_jax import (
    DCTpSConv,
    DCTpSConvTranspose,
    DCTpSEinsum,
    DCTpSEmbed,
    DCTpSLinear,
    DCTpSLinearGeneral,
    execution_report,
    pruning,
)
from dctps_jax.accounts.flops import flops_account
from dctps_jax.models import create_model, kernel_shapes, prunable_layers

# Output positions an image and size of the kernel of LeNet's layers.
LENET = {
    "convs.0": (28 * 28, (75, 6)),
    "convs.3": (10 * 10, (150, 16)),
    "convs.6": (1, (400, 120)),
    "fcs.0": (1, (120, 82)),
    "fcs.2": (1, (82, 10)),
}


def lenet(offset, **options):
    return create_model("lenet", num_classes=10, offset=offset, rngs=nnx.Rngs(0), **options)


@pytest.mark.parametrize("offset", ["dct", None])
@pytest.mark.parametrize("batch", [1, 4])
def test_lenet(offset, batch):
    counts = dict.fromkeys(LENET, 7)
    account = flops_account(lenet(offset), (batch, 32, 32, 3), counts)

    def expected(images):
        dense = images * sum(2 * positions * rows * columns for positions, (rows, columns) in LENET.values())
        sparse = images * sum(2 * 7 * positions for positions, _ in LENET.values())
        offsets = 0
        for positions, (rows, columns) in LENET.values():
            transform = 2 * max(rows, columns) * math.log2(max(rows, columns))
            offsets += round(images * positions * min(transform, 2 * rows * columns))
        return {"dense": dense, "sparse": sparse, "offset": offsets if offset else 0}

    assert account["inference_of_an_image"] == expected(1)
    assert account["training_step"]["dense"] == 3 * expected(batch)["dense"]
    assert account["training_step"]["sparse"] == 3 * expected(batch)["sparse"]
    assert account["training_step"]["offset"] == 2 * expected(batch)["offset"]


def test_the_form_of_the_layers_does_not_matter():
    shapes = kernel_shapes("lenet", num_classes=10)
    supports = pruning.random_supports(jax.random.key(0), shapes, dict.fromkeys(shapes, 5))
    compact, masked = lenet("dct", supports=supports), lenet("dct", supports=supports)
    for layer in prunable_layers(masked).values():
        layer.set_mask(pruning.mask_of_support(np.asarray(layer.support[...]), layer.kernel_shape))
    counts = dict.fromkeys(LENET, 5)
    assert flops_account(compact, (2, 32, 32, 3), counts) == flops_account(masked, (2, 32, 32, 3), counts)


@pytest.mark.usefixtures("small_families")
def test_depthwise_layers_count_a_group_s_inputs_only():
    model = create_model("small_mobilenet", num_classes=10, rngs=nnx.Rngs(0))
    layers = prunable_layers(model)
    whole = {path: math.prod(layer.kernel_shape) for path, layer in layers.items()}
    account = flops_account(model, (1, 32, 32, 3), whole)["inference_of_an_image"]
    assert account["dense"] == account["sparse"]


def own_types(values, dtype=None):
    return dtypes.promote_dtype(values, dtype=dtype)


@pytest.mark.parametrize(
    ("make", "inputs", "expected"),
    [
        (partial(DCTpSConv, 96, 96, (3, 3), feature_group_count=96), (1, 6, 6, 96), 36 * 2 * 9 * 96),
        (partial(DCTpSConv, 64, 64, (3, 3), feature_group_count=2), (1, 6, 6, 64), 36 * 2 * 2 * 288 * math.log2(288)),
        (
            partial(DCTpSConv, 64, 64, (1, 1), feature_group_count=2, promote_dtype=own_types),
            (1, 6, 6, 64),
            36 * 2 * 2 * 64 * math.log2(64),
        ),
        (partial(DCTpSEinsum, "bgi,gio->bgo", (96, 4, 4)), (1, 96, 4), 2 * 4 * 4 * 96),
    ],
    ids=["depthwise", "two groups", "JAX's own convolution", "batch axes"],
)
def test_each_group_transforms_inputs_of_its_own(make, inputs, expected):
    model = nnx.Sequential(make(rngs=nnx.Rngs(0)))
    account = flops_account(model, inputs, dict.fromkeys(prunable_layers(model), 0))
    assert account["inference_of_an_image"]["offset"] == round(expected)


def test_other_kinds_of_layers():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.table = DCTpSEmbed(7, 4, offset=None, rngs=rngs)
            self.heads = DCTpSLinearGeneral(4, (3, 2), offset=None, rngs=rngs)
            self.stack = DCTpSLinearGeneral(2, 5, batch_axis={0: 2}, axis=-1, offset=None, rngs=rngs)
            self.up = DCTpSConvTranspose(5, 4, 3, strides=2, padding="VALID", offset=None, rngs=rngs)

        def __call__(self, x):  # [batch, 2, 1]
            y = self.heads(self.table(x[..., 0].astype(int)))  # [batch, 2, 3, 2]
            y = self.stack(y.transpose(1, 0, 2, 3))  # [2, batch, 3, 5]
            return self.table.attend(self.up(y.transpose(1, 0, 2, 3)))  # [batch, 2, 7, 7]

    model = Net(nnx.Rngs(0))
    assert flops_account(model, (5, 2, 1), dict.fromkeys(["table", "heads", "stack", "up"], 1))[
        "inference_of_an_image"
    ] == {
        "dense": 2 * (2 * 4 * 6 + 3 * 2 * (2 * 5) + 2 * 7 * 15 * 4 + 2 * 7 * 7 * 4),
        "sparse": 2 * (2 + 3 + 14 + 14),
        "offset": 0,
    }


def test_layers_that_no_method_computes():
    wide = {"preferred_element_type": "float32", "offset": None}

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.dilated = DCTpSConv(3, 4, (3,), kernel_dilation=2, padding="VALID", rngs=rngs)
            self.up = DCTpSConvTranspose(4, 2, (3,), strides=2, padding="VALID", **wide, rngs=rngs)
            self.general = DCTpSLinearGeneral(2, (2, 3), **wide, rngs=rngs)
            self.einsum = DCTpSEinsum("...ab,abc->...c", (2, 3, 5), **wide, rngs=rngs)
            self.linear = DCTpSLinear(5, 7, **wide, rngs=rngs)

        def __call__(self, x):  # [batch, 9, 3]
            return self.linear(self.einsum(self.general(self.up(self.dilated(x)))))  # 5, then 11 positions

    model = Net(nnx.Rngs(0))
    for layer in prunable_layers(model).values():
        layer.set_support(np.arange(2))
    account = flops_account(model, (4, 9, 3), dict.fromkeys(prunable_layers(model), 2))["inference_of_an_image"]
    assert account["dense"] == 2 * (5 * 9 * 4 + 11 * (12 * 2 + 2 * 6 + 6 * 5 + 5 * 7))
    assert account["sparse"] == 2 * 2 * (5 + 4 * 11) and account["offset"] > 0
    assert not execution_report(model, np.zeros((4, 9, 3), np.float32)).rows
