"""Time each method on each layer of a network: ``python benchmarks/layers.py resnet50 0.001 --batch_size 32``.

Instead of a network, ``linear:1024x1024,2048x512`` names linear layers by inputs and outputs, each with that density.

For each distinct layer it times, in turns, the layer of a dense network and each method that can compute the compact
layer. Predicted times stand beside the times of the methods, and a star marks the method that "auto" chooses. For the
dense layer and the chosen method, these are also timed alone: the forward pass, the gradient of the inputs, and the
gradient of what is trained. The last lines add up the layers of the network and compare the chosen methods with the
best ones: the regret. ``--save NAME`` writes the figures to benchmarks/results/NAME.json, which ``fit_costs.py`` reads.
Needs the package installed, or ``PYTHONPATH=.``.
"""

import argparse
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from record import describe_run, save

from dctps_jax import execution_report, models, pruning
from dctps_jax.offsets import find_offset
from dctps_jax.ops.compiler import compiler_options
from dctps_jax.ops.convolution import convolve
from dctps_jax.ops.cost_model import choose, predicted_seconds
from dctps_jax.ops.geometry import Geometry
from dctps_jax.ops.methods import METHODS, apply_kernel, possible_methods
from dctps_jax.ops.work import Work
from dctps_jax.training.memory import keep_freed_memory

DENSE_LAYER = "dense layer"
OPERATIONS = ("forward", "inputs", "trained", "all")
EXAMPLE = "linear:1024x1024,2048x512"
LINEAR = re.compile(r"linear:[1-9]\d*x[1-9]\d*(,[1-9]\d*x[1-9]\d*)*")
APART = ("dense_layer", "chosen")
Program = tuple[Work, str, str]  # a layer, the method, and which of the operations


def layers_of(network: str, density: float, batch_size: int, num_classes: int, offset: str | None) -> Counter[Work]:
    """Return what the layers of a network have to compute, and how many layers compute the same.

    ``network`` is the name of a network, or "linear:" and the sizes of linear layers.
    """
    kind, _, sizes = network.partition(":")
    if kind == "linear":
        shapes = [tuple(int(size) for size in pair.split("x")) for pair in sizes.split(",")]
        layers = [(shape, round(density * math.prod(shape))) for shape in shapes]
        return Counter(Work(Geometry(shape), (batch_size, shape[0]), nnz, find_offset(offset)) for shape, nnz in layers)
    shapes = models.kernel_shapes(network, num_classes=num_classes)
    model = models.create_model(
        network,
        num_classes=num_classes,
        offset=offset,
        rngs=nnx.Rngs(0),
        supports=pruning.random_supports(jax.random.key(0), shapes, pruning.allocate(shapes, density, "epl")),
    )
    images = jax.ShapeDtypeStruct((batch_size, 32, 32, 3), jnp.float32)
    return Counter(row.work for row in execution_report(model, images).rows)


def step_of(work: Work, method: str) -> Callable[..., dict[str, Any]]:
    """Return a function of a layer's inputs, what it trains, its support and a gradient of its outputs.

    It returns the outputs and all gradients, by the names of the :data:`OPERATIONS`.
    """

    def layer(inputs: Any, trained: Any, support: Any) -> Any:
        if method == DENSE_LAYER:
            return convolve(inputs, trained.astype(inputs.dtype), work.geometry)
        values, alpha = trained
        return apply_kernel(method, work, inputs, values, alpha, support)

    def step(inputs: Any, trained: Any, support: Any, gradient: Any) -> dict[str, Any]:
        outputs, pull = jax.vjp(lambda inputs, trained: layer(inputs, trained, support), inputs, trained)
        grad_inputs, to_trained = pull(gradient)
        return {"forward": outputs, "inputs": grad_inputs, "trained": to_trained}

    return step


def program_of(work: Work, method: str, operation: str) -> Callable[..., Any]:
    """Return a compiled function of one of the :data:`OPERATIONS` of a layer, for what :func:`arguments_of` returns."""
    step = step_of(work, method)

    def program(*given: Any) -> Any:
        results = step(*given)
        return results if operation == "all" else results[operation]

    shapes = jax.eval_shape(lambda: arguments_of(work, method))
    return jax.jit(program).lower(*shapes).compile(compiler_options())


def arguments_of(work: Work, method: str) -> tuple[Any, ...]:
    """Return random inputs of a layer, what it trains, its support and a gradient of its outputs."""
    keys = jax.random.split(jax.random.key(0), 3)
    shape = work.geometry.kernel_shape
    if method == DENSE_LAYER:
        trained: Any = 0.1 * jax.random.normal(keys[1], shape)
    else:
        trained = 0.1 * jax.random.normal(keys[1], (work.nnz,)), None if work.offset is None else jnp.float32(1)
    # NumPy draws a few of many numbers without shuffling all of them.
    drawn = np.random.default_rng(0).choice(math.prod(shape), work.nnz, replace=False)
    support = jnp.asarray(np.sort(drawn), jnp.int32)
    outputs = (work.inputs[0], *work.geometry.output_spatial(work.inputs[1:-1]), shape[-1])
    return jax.random.normal(keys[0], work.inputs), trained, support, jax.random.normal(keys[2], outputs)


def compile_all(works: Iterable[Work], methods: Sequence[str], apart: bool) -> dict[Program, Callable[..., Any]]:
    """Return the programs of all layers, compiled side by side.

    Each method is compiled as a whole, the dense layer and the chosen method also taken apart.
    """
    wanted: list[Program] = []
    for work in works:
        choice = choose("auto", work, jnp.float32)
        whole = [method for method in possible_methods(work) if method in (*methods, choice)]
        wanted += [(work, method, "all") for method in (DENSE_LAYER, *whole)]
        taken_apart = (DENSE_LAYER, choice) if apart else ()
        wanted += [(work, method, operation) for method in taken_apart for operation in OPERATIONS[:-1]]
    with ThreadPoolExecutor() as pool:
        return dict(zip(wanted, pool.map(lambda program: program_of(*program), wanted), strict=True))


class Seconds(NamedTuple):
    """The least seconds of a program: wall time, and its cost, which on a CPU is the sum over its cores."""

    cost: float
    wall: float


def measure(programs: dict[Program, Callable[..., Any]], repeats: int) -> dict[Program, Seconds]:
    """Return the least seconds of each program. They run in turns."""
    arguments = {(work, method): arguments_of(work, method) for work, method, _ in programs}
    best = dict.fromkeys(programs, Seconds(float("inf"), float("inf")))
    on_cpu = jax.default_backend() == "cpu"
    # A device is busy with one call while the next one is sent to it.
    clock, calls = (time.process_time, 1) if on_cpu else (time.perf_counter, 50)
    clocks = (clock, time.perf_counter)
    for _ in range(repeats + 1):
        for name, program in programs.items():
            given = jax.block_until_ready(arguments[name[:2]])
            started = [clock() for clock in clocks]
            for _ in range(calls - 1):
                program(*given)
            jax.block_until_ready(program(*given))
            taken = [(clock() - start) / calls for clock, start in zip(clocks, started, strict=True)]
            best[name] = Seconds(*map(min, best[name], taken))
    return best


def describe_layer(work: Work, count: int) -> dict[str, Any]:
    """Return the description of a layer in a result; fit_costs.py makes the layer's work from it."""
    return {
        "layers": count,
        "kernel": list(work.geometry.kernel_shape),
        "stride": work.geometry.largest_stride,
        "pads": [list(pair) for pair in work.geometry.pads],
        "inputs": list(work.inputs),
        "nnz": work.nnz,
    }


def figures_of(work: Work, count: int, programs: dict[Program, Callable[..., Any]], repeats: int) -> dict[str, Any]:
    """Return the measured and the predicted seconds of a layer."""
    best = measure({name: program for name, program in programs.items() if name[0] == work}, repeats)
    seconds = {(method, operation): least.cost for (_, method, operation), least in best.items()}
    wall = {(method, operation): least.wall for (_, method, operation), least in best.items()}
    choice = choose("auto", work, jnp.float32)
    whole = {method: best for (method, operation), best in seconds.items() if operation == "all"}
    figures = describe_layer(work, count) | {
        "choice": choice,
        "seconds": whole,
        "predicted_seconds": {
            method: predicted_seconds(work, method, jnp.float32) for method in whole if method != DENSE_LAYER
        },
    }
    for label, method in ((APART[0], DENSE_LAYER), (APART[1], choice)):
        if (method, "forward") in seconds:
            figures[label] = {operation: seconds[method, operation] for operation in OPERATIONS[:-1]}
            figures[f"{label}_wall"] = {operation: wall[method, operation] for operation in OPERATIONS}
    return figures


def table(layers: list[dict[str, Any]]) -> str:
    """Return the layers' figures as a Markdown table, in milliseconds."""
    head = ["layers", "kernel", "stride", "inputs", "nnz", DENSE_LAYER, *METHODS, "dense apart", "chosen apart"]
    rows = []
    for layer in layers:
        methods = [
            f"{1e3 * layer['seconds'][method]:.2f} ({1e3 * layer['predicted_seconds'][method]:.2f})"
            + ("*" if method == layer["choice"] else "")
            if method in layer["seconds"]
            else ""
            for method in METHODS
        ]
        apart = [
            " + ".join(f"{1e3 * layer[kind][name]:.2f}" for name in OPERATIONS[:-1]) if kind in layer else ""
            for kind in APART
        ]
        shapes = ["×".join(map(str, layer[name])) for name in ("kernel", "inputs")]
        dense = f"{1e3 * layer['seconds'][DENSE_LAYER]:.2f}"
        shown = [str(layer["layers"]), shapes[0], str(layer["stride"]), shapes[1], str(layer["nnz"]), dense]
        rows.append([*shown, *methods, *apart])
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---:"] * len(head), *rows)]
    return "\n".join(lines)


def against_dense(layers: list[dict[str, Any]]) -> str:
    """Return the wall times of the dense layers and of the chosen methods, forward pass and whole step, as text."""
    lines = []
    for layer in layers:
        dense, chosen = (layer[f"{label}_wall"] for label in APART)
        pairs = [
            f"{name} {1e3 * dense[operation]:.1f} : {1e3 * chosen[operation]:.1f} = "
            f"{dense[operation] / chosen[operation]:.1f}"
            for name, operation in (("forward", "forward"), ("step", "all"))
        ]
        lines.append(f"{'×'.join(map(str, layer['kernel']))}, {layer['choice']}: {', '.join(pairs)}")
    return "\n".join(lines)


def totals(layers: list[dict[str, Any]]) -> str:
    """Return the sums over all layers of the network as text."""

    def total(seconds: Callable[[dict[str, Any]], float]) -> float:
        return 1e3 * sum(layer["layers"] * seconds(layer) for layer in layers)

    lines = []
    for name, kind, whole in (
        ("dense layers", APART[0], lambda layer: layer["seconds"][DENSE_LAYER]),
        ("as chosen", APART[1], lambda layer: layer["seconds"][layer["choice"]]),
    ):
        line = f"{name}: {total(whole):.1f} ms"
        if all(kind in layer for layer in layers):
            apart = [
                f"{operation} {total(lambda layer, o=operation, k=kind: layer[k][o]):.1f}"
                for operation in OPERATIONS[:-1]
            ]
            line += f" ({', '.join(apart)} alone)"
        lines.append(line)
    planned_time = total(lambda layer: layer["seconds"][layer["choice"]])
    best = total(lambda layer: min(time for method, time in layer["seconds"].items() if method != DENSE_LAYER))
    lines.append(f"at best {best:.1f} ms: regret {planned_time / best - 1:.1%}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("network", help="the name of a network, or linear:INxOUT,INxOUT,…")
    parser.add_argument("density", type=float)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--num_classes", type=int, default=100)
    parser.add_argument("--offset", default="dct")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--apart", type=int, default=1, help="0: do not take the layers apart")
    parser.add_argument("--save", default="", help="write benchmarks/results/NAME.json")
    arguments = parser.parse_args()
    if arguments.network.startswith("linear:") and not LINEAR.fullmatch(arguments.network):
        parser.error(
            f"network is {arguments.network!r}; linear layers are written linear:INxOUT,INxOUT,… as in {EXAMPLE}"
        )
    keep_freed_memory()
    offset = None if arguments.offset == "none" else arguments.offset
    works = layers_of(arguments.network, arguments.density, arguments.batch_size, arguments.num_classes, offset)
    programs = compile_all(works, arguments.methods, bool(arguments.apart))
    layers = [figures_of(work, count, programs, arguments.repeats) for work, count in works.items()]
    clock = "CPU milliseconds" if jax.default_backend() == "cpu" else "milliseconds"
    print(f'{clock} of a step, measured (predicted); * what "auto" chooses; apart: forward + inputs + trained')
    print(table(layers))
    print(totals(layers))
    if arguments.apart:
        print("wall milliseconds, dense layer : chosen method", against_dense(layers), sep="\n")
    save(arguments.save, describe_run(arguments) | {"layers": layers})


if __name__ == "__main__":
    main()
