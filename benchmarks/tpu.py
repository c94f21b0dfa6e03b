"""Compile training programs for a TPU that is not there: ``python benchmarks/tpu.py vgg19:none:1 vgg19:dct:0.001``.

A case is written as for ``train_step.py``. Its network may be a config, e.g. configs/resnet50_imagenet.py:none:1. Batch
size and optimiser then come from the config, and the images are streamed. The program is the one of a run: a dispatch
of ``--steps_per_dispatch`` steps, or the step that moves weights with ``--sparse_training``. The script prints the
cycles that the TPU's compiler estimates for a step, in all and by group, the bound of each group, the largest
operations, and the memory. These are estimates of a compiler, not measured times. Needs ``pip install -e '.[tpu]'`` and
no TPU. ``--save NAME`` also writes the figures to benchmarks/results/tpu_NAME.json.
"""

import argparse
import os
import runpy
from collections import Counter, defaultdict
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

# Set before JAX is imported: JAX uses the CPU of this machine, and no TPU is asked for its place in a pod.
for variable, value in (("JAX_PLATFORMS", "cpu"), ("TPU_SKIP_MDS_QUERY", "1"), ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")):
    os.environ.setdefault(variable, value)

import jax
import numpy as np
import optax
from flax import nnx
from hlo import Operation, Program
from jax.experimental import topologies
from record import describe_run, save
from train_step import build, case_parts

from dctps_jax import models
from dctps_jax.config import resolve
from dctps_jax.data import Dataset
from dctps_jax.data.batches import ExamplesInRows, Normalization, Subset
from dctps_jax.optimizers import make_optimizer
from dctps_jax.pruning.dynamic import MovingSchedule
from dctps_jax.training import loop
from dctps_jax.training.from_config import make_optimizer_and_schedule, make_step_spec
from dctps_jax.training.placement import Placement, place_on
from dctps_jax.training.sparse_model import build_sparse_model
from dctps_jax.training.state import create_state
from dctps_jax.training.step import zero_sums
from dctps_jax.training.step_spec import StepSpec
from dctps_jax.training.streamed_images import StreamedImages


class Chip(NamedTuple):
    """What a chip does in a cycle: FLOPs of its matrix units in bfloat16, bytes of its memory."""

    hertz: float
    flops: float
    bytes: float


CHIPS = {
    "v5e": Chip(1.5e9, 197e12 / 1.5e9, 819e9 / 1.5e9),
    "v6e": Chip(1.75e9, 918e12 / 1.75e9, 1640e9 / 1.75e9),
}
TOPOLOGIES = {1: "2x2", 4: "2x2", 16: "4x4"}


def chips(chip: str, count: int) -> list[Any]:
    """Return the devices of TPUs that are not there."""
    topology = topologies.get_topology_desc(topology_name=f"{chip}:{TOPOLOGIES[count]}", platform="tpu")
    return list(topology.devices[:count])


class Case(NamedTuple):
    """What the program of a case is compiled from."""

    model: nnx.Module
    optimizer: optax.GradientTransformation
    spec: StepSpec
    train: Any


def case_of_network(name: str, arguments: argparse.Namespace, placement: Placement) -> Case:
    """Return the case of a network on images that lie on the devices."""
    network, offset, density, form, method = case_parts(name)
    model = build(network, None if offset == "none" else offset, float(density), form, method, arguments)
    optimizer = make_optimizer("adam", 0.001, momentum=0.9, weight_decay=5e-4, fixup=models.is_fixup(network))
    shape, count, moving = (arguments.image_size, arguments.image_size, 3), arguments.images, arguments.sparse_training
    spec = StepSpec(
        batch_size=arguments.batch_size,
        eval_batch_size=arguments.batch_size,
        steps_per_epoch=count // arguments.batch_size,
        steps_per_dispatch=arguments.steps_per_dispatch,
        normalization=Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        augmented=True,
        seed=0,
        sparse_training=moving,
        updates=None if moving == "static" else MovingSchedule(100, 1000, 0.3),
    )
    images: Any = jax.ShapeDtypeStruct((count, int(np.prod(shape))), np.uint8)
    labels: Any = jax.ShapeDtypeStruct((count,), np.int32)
    return Case(model, optimizer, spec, placement.abstract(ExamplesInRows(images, labels, shape)))


def case_of_config(name: str, arguments: argparse.Namespace, placement: Placement) -> Case:
    """Return the case of a config with another offset and density, on images that are streamed."""
    file, offset, density = name.split(":")
    config = runpy.run_path(file)["get_config"]()
    config.model.offset, config.pruning.density = offset, float(density)
    config.steps_per_dispatch, config.sparse_training.method = arguments.steps_per_dispatch, arguments.sparse_training
    config.model.dtype = arguments.dtype
    config = resolve(config)
    shape = arguments.images, config.data.image_size, config.data.image_size, 3
    # Arrays of any length that take no memory.
    images, labels = np.broadcast_to(np.uint8(0), shape), np.broadcast_to(np.int32(0), shape[:1])
    names = tuple(f"class {number}" for number in range(arguments.num_classes))
    dataset = Dataset("images", images, labels, images, labels, names)
    train = Subset(images, labels, np.arange(len(labels)))
    spec = make_step_spec(config, dataset, train, "tpu", is_streamed=True)
    model, _ = build_sparse_model(config, dataset, train, spec)
    optimizer, _ = make_optimizer_and_schedule(config, spec.steps_per_epoch)
    window = StreamedImages(images, labels, placement).abstract_window(spec.steps_per_dispatch, spec.batch_size)
    return Case(model, optimizer, spec, window)


def compile_case(name: str, devices: list[Any], arguments: argparse.Namespace) -> tuple[Any, int]:
    """Return the compiled program of a case, and the bytes of what it trains."""
    placement = place_on(devices)
    case_of = case_of_config if name.partition(":")[0].endswith(".py") else case_of_network
    case = case_of(name, arguments, placement)
    graphs, state = create_state(case.model, case.optimizer, placement.axis_name)
    setup = loop.Setup(case.spec, graphs, case.optimizer, placement)
    rows: Any = jax.ShapeDtypeStruct((case.spec.steps_per_epoch * case.spec.batch_size,), np.int32)
    epoch = loop.Epoch(rows, jax.eval_shape(lambda: jax.random.key(0)))
    parameter_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    state, sums, epoch = placement.abstract((state, zero_sums(max(1, len(graphs.counts))), epoch))
    if case.spec.updates is None:
        program = partial(loop.take_steps, num_steps=case.spec.steps_per_dispatch, setup=setup)
        given: tuple[Any, ...] = state, sums, case.train, epoch
    else:
        program = partial(loop.update_masks, setup=setup)
        given = state, sums, case.train, epoch, placement.abstract(np.zeros(len(graphs.counts), np.int32))
    return placement.compile(program, given, (0, 1)), parameter_bytes


def figures_of(name: str, compiled: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of a step of a compiled program: cycles by group, the largest operations, memory."""
    program, chip = Program(compiled.as_text()), CHIPS[arguments.chip]
    steps = arguments.steps_per_dispatch if arguments.sparse_training == "static" else 1
    operations, memory = program.operations(), compiled.memory_analysis()
    groups: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        groups[operation.group].append(operation)
    return {
        "case": name,
        "dtype": arguments.dtype,
        "chip": arguments.chip,
        "chips": arguments.chips,
        "sparse_training": arguments.sparse_training,
        "megacycles": sum(operation.cycles or 0 for operation in operations) / steps / 1e6,
        "groups": {group: summary(of_group, chip, steps) for group, of_group in sorted(groups.items())},
        "largest": [
            {"megacycles": (op.cycles or 0) / steps / 1e6, "group": op.group, "place": op.place, "type": op.type}
            for op in operations[:10]
        ],
        "without_estimate": [
            {"opcode": op.opcode, "place": op.place, "type": op.type, "times": op.times / steps}
            for op in operations
            if op.lacks_estimate
        ],
        "flops": sum(operation.flops for operation in operations) / steps,
        "bytes": sum(operation.bytes for operation in operations) / steps,
        "hbm_arguments": memory.argument_size_in_bytes,
        "hbm_temporaries": memory.temp_size_in_bytes,
        "largest_result_bytes": max(op.result_bytes for op in operations),
        "collective_bytes": [op.result_bytes for op in groups.get("collectives", [])],
    }


def summary(operations: list[Operation], chip: Chip, steps: int) -> dict[str, Any]:
    """Return the cycles of a group, and its nearest bound: matrix unit, memory or vector unit."""
    counts = ((operation.cycles or 0, operation.flops, operation.bytes) for operation in operations)
    cycles, flops, moved = (sum(of_all) / steps for of_all in zip(*counts, strict=True))
    shares = {"matrix unit": flops / chip.flops, "memory": moved / chip.bytes}
    bound = max(shares, key=lambda unit: shares[unit])
    # Time that neither of them explains is the vector unit's, or latency.
    return {
        "megacycles": cycles / 1e6,
        "bound": bound if shares[bound] > cycles / 2 else "vector unit",
        "megacycles_at_peak": {unit: share / 1e6 for unit, share in shares.items()},
    }


def report(case: dict[str, Any], hertz: float) -> str:
    """Return the figures of a case as text."""
    total = case["megacycles"]
    lines = [
        f"{case['case']}, {case['dtype']}, {case['chips']} × {case['chip']}, {case['sparse_training']}: "
        f"{total:.3f} Mcycles ({1e9 * total / hertz:.3f} ms), {case['flops'] / 1e9:,.1f} GFLOP, "
        f"{case['bytes'] / 1e6:,.0f} MB moved, HBM {case['hbm_arguments'] / 1e6:,.0f} MB arguments and "
        f"{case['hbm_temporaries'] / 1e6:,.0f} MB temporaries"
    ]
    for group, of_group in sorted(case["groups"].items(), key=lambda pair: -pair[1]["megacycles"]):
        share = of_group["megacycles"] / total
        lines.append(f"  {group:24} {of_group['megacycles']:8.3f}  {share:6.1%}  {of_group['bound']}")
    lines += [f"    {op['megacycles']:8.4f} {op['group']}: {op['place']} {op['type'][:70]}" for op in case["largest"]]
    if case["without_estimate"]:
        places = Counter(f"{op['place']} {op['type']}" for op in case["without_estimate"])
        lines.append(f"  without an estimate, not in the sums: {sum(places.values())} operations, the most frequent:")
        lines += [f"    {count} × {place[:130]}" for place, count in places.most_common(5)]
    if case["collective_bytes"]:
        lines.append(f"  bytes of each collective: {case['collective_bytes']}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="+", help="e.g. vgg19:none:1 vgg19:dct:0.001 vgg19:dct:0.001:compact:autodiff")
    parser.add_argument("--chip", default="v5e", choices=tuple(CHIPS))
    parser.add_argument("--chips", type=int, default=1, choices=tuple(TOPOLOGIES))
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"), help="of the computation")
    parser.add_argument("--batch_size", type=int, default=128, help="of all chips together")
    parser.add_argument("--num_classes", type=int, default=10)
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--images", type=int, default=50_000, help="in the data set")
    parser.add_argument("--steps_per_dispatch", type=int, default=1)
    parser.add_argument("--sparse_training", default="static", choices=("static", "rigl", "set"))
    parser.add_argument("--text", default="", help="also write the compiled program of the last case to this file")
    parser.add_argument("--save", default="", help="write benchmarks/results/tpu_NAME.json")
    arguments = parser.parse_args()
    cases = []
    for name in arguments.cases:
        devices = chips(arguments.chip, arguments.chips)
        compiled, parameter_bytes = compile_case(name, devices, arguments)
        cases.append(figures_of(name, compiled, arguments) | {"parameter_bytes": parameter_bytes})
        print(report(cases[-1], CHIPS[arguments.chip].hertz), flush=True)
        if arguments.text:
            with open(arguments.text, "w") as file:
                file.write(compiled.as_text())
        saved = describe_run(arguments) | {"libtpu": version("libtpu"), "cases": cases}
        save(f"tpu_{arguments.save}" if arguments.save else "", saved)


if __name__ == "__main__":
    main()
