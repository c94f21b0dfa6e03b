"""The plan of a network as rows and as a table."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dctps_jax import DCTpSConv, UserError, convert, execution_report
from dctps_jax.accounts.execution_report import ExecutionReport
from dctps_jax.models import create_model, kernel_shapes, prunable_layers
from dctps_jax.offsets import find_offset
from dctps_jax.ops.cost_model import choose, predicted_seconds
from dctps_jax.ops.methods import METHODS, possible_methods
from dctps_jax.pruning import apply_masks

LENET = {
    "convs.0": ((8, 32, 32, 3), (5, 5, 3, 6)),
    "convs.3": ((8, 14, 14, 6), (5, 5, 6, 16)),
    "convs.6": ((8, 5, 5, 16), (5, 5, 16, 120)),
    "fcs.0": ((8, 120), (120, 82)),
    "fcs.2": ((8, 82), (82, 10)),
}


def images(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def compact(name, offset="dct", **options):
    """A network with four weights a layer."""
    return create_model(
        name, num_classes=10, offset=offset, rngs=nnx.Rngs(0), init="zeros",
        supports={path: np.arange(4) for path in kernel_shapes(name, num_classes=10)}, **options,
    )  # fmt: skip


@pytest.mark.parametrize("offset", ["dct", None])
def test_every_layer_once_with_its_inputs(offset):
    rows = execution_report(compact("lenet", offset), images(8, 32, 32, 3)).rows
    assert [path for path, *_ in rows] == list(LENET)
    for path, work, method, _ in rows:
        assert (work.inputs, work.geometry.kernel_shape) == LENET[path]
        assert work.nnz == 4 and work.offset == find_offset(offset)
        assert work.geometry.strides == (1,) * len(work.geometry.size)
        assert method == choose("auto", work, jnp.float32)


@pytest.mark.parametrize(
    ("name", "options", "sizes"), [("resnet18", {"width": 2}, {8, 4, 2, 1}), ("fixup_resnet20", {}, {8, 4, 2})]
)
def test_deep_networks_too(name, options, sizes):
    model = compact(name, **options)
    rows = execution_report(model, images(2, 8, 8, 3)).rows
    layers = prunable_layers(model)
    assert [path for path, *_ in rows] == list(layers)
    for path, work, *_ in rows:
        assert work.geometry.kernel_shape == layers[path].kernel_shape
    assert {work.inputs[1] for _, work, *_ in rows if work.geometry.size} == sizes


def test_a_method_that_was_set_shows():
    model = compact("lenet")
    layers = prunable_layers(model)
    layers["convs.3"].method = "per_weight"
    layers["convs.0"].method = "per_weight"  # three channels: not possible
    layers["fcs.0"].method = "autodiff"
    methods = {path: method for path, _, method, _ in execution_report(model, images(1, 32, 32, 3)).rows}
    assert (methods["convs.3"], methods["convs.0"], methods["fcs.0"]) == ("per_weight", "on_support", "autodiff")


def test_the_model_stays_as_it_was():
    model = compact("resnet18", width=2)
    before = nnx.to_pure_dict(nnx.state(model))
    graph = nnx.graphdef(model)
    execution_report(model, images(2, 8, 8, 3))
    assert nnx.graphdef(model) == graph and not model.bn1.use_running_average
    assert type(prunable_layers(model)["conv1"]) is DCTpSConv and "recording" not in vars(
        prunable_layers(model)["conv1"]
    )
    after = nnx.to_pure_dict(nnx.state(model))
    np.testing.assert_array_equal(after["bn1"]["mean"], before["bn1"]["mean"])


def test_only_compact_layers_are_planned():
    model = create_model("lenet", num_classes=10, offset="dct", rngs=nnx.Rngs(0))
    assert execution_report(model, images(1, 32, 32, 3)).rows == ()
    masks = {path: np.arange(math.prod(shape)).reshape(shape) < 7 for path, (_, shape) in LENET.items()}
    apply_masks(model, masks, "masked")
    assert execution_report(model, images(1, 32, 32, 3)).rows == ()
    prunable_layers(model)["convs.3"].set_support(np.arange(3))
    assert [(path, work.nnz) for path, work, *_ in execution_report(model, images(1, 32, 32, 3)).rows] == [
        ("convs.3", 3)
    ]


def test_whole_table():
    model = compact("lenet")
    prunable_layers(model)["convs.6"].set_support(np.arange(1234))
    prunable_layers(model)["convs.6"].method = "on_support"
    report = execution_report(model, images(8, 32, 32, 3))
    rows = report.rows
    header, *lines, unit = str(report).splitlines()
    assert unit == "by method: predicted milliseconds of a training step"
    assert header.split() == ["layer", "kernel", "stride", "inputs", "nnz", "method", *METHODS]
    assert [line.split()[0] for line in lines] == list(LENET)
    cells = lines[2].split()
    assert cells[:6] == ["convs.6", "5×5×16×120", "1", "8×5×5×16", "1,234", "on_support"]
    # No time for what is not possible: the offset has factors, but its kernel is not 1×1.
    possible = possible_methods(rows[2][1])
    assert set(METHODS) - set(possible) == {"transform", "transform_rows"}
    assert cells[6:] == [f"{1e3 * predicted_seconds(rows[2].work, method, jnp.float32):.2f}" for method in possible]
    assert len(lines[0].split()) == len(cells) - 2
    for title in ("kernel", "inputs", "method", "autodiff"):
        start = header.index(title)
        assert all(line[start - 2 : start] == "  " and line[start] != " " for line in lines)


def test_the_stride_is_shown():
    (row,) = (
        row
        for row in execution_report(compact("resnet18", width=2), images(2, 8, 8, 3)).rows
        if row[0] == "layer2.0.conv1"
    )
    assert str(ExecutionReport((row,))).splitlines()[1].split()[:4] == ["layer2.0.conv1", "3×3×2×4", "2", "2×8×8×2"]


def test_a_network_without_compact_layers_and_the_sizes_of_an_array():
    model = create_model("lenet", num_classes=10, offset="dct", rngs=nnx.Rngs(0))
    assert str(execution_report(model, images(1, 32, 32, 3))).startswith("no layer is compact; masked and dense")
    with pytest.raises(UserError, match="has no prunable layers"):
        execution_report(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), images(1, 2))
    with pytest.raises(UserError, match=r"an input is \(1, 32, 32, 3\); .* jax.ShapeDtypeStruct\(\(1, 32, 32, 3\), "):
        execution_report(model, (1, 32, 32, 3))


class Tokens(nnx.Module):
    """Looks tokens up, applies a stack of layers by nnx.scan, one layer in nnx.remat, and drops out as it is told."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap
        def stack(rngs):
            return nnx.Linear(8, 8, rngs=rngs)

        self.embed = nnx.Embed(5, 8, rngs=rngs)
        self.blocks = stack(rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, tokens, *, scale):
        run = nnx.scan(lambda x, block: nnx.relu(block(x)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return scale * nnx.remat(lambda head, x: head(x))(self.head, run(self.embed(tokens), self.blocks))


def test_networks_of_other_inputs_with_scanned_stacks():
    model = convert(Tokens(nnx.Rngs(0)), density=0.1, method="uniform", key=0)
    graph = nnx.graphdef(model)
    tokens = jnp.zeros((2, 7), int)
    report = execution_report(model, tokens, scale=2.0)
    assert [(row.path, row.work.inputs, row.work.nnz) for row in report.rows] == [
        ("blocks", (14, 8), 6),  # a layer of the stack
        ("head", (14, 8), 4),
    ]
    assert nnx.graphdef(model) == graph and model(tokens, scale=2.0).shape == (2, 7, 4)
    shapes = jax.ShapeDtypeStruct(tokens.shape, tokens.dtype)
    assert execution_report(model, shapes, scale=2.0) == report
    assert str(report).splitlines()[1].split()[:6] == ["blocks", "8×8", "1", "14×8", "6", report.rows[0].method]


def test_a_layer_that_is_used_twice_has_two_rows():
    class Twice(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(8, 8, rngs=rngs)

        def __call__(self, x):
            return self.layer(self.layer(x))

    model = convert(Twice(nnx.Rngs(0)), density=0.1, method="uniform", key=0)
    assert [row.path for row in execution_report(model, images(2, 8)).rows] == ["layer", "layer"]
