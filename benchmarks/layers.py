"""Time every way of computing each layer of a network: ``python benchmarks/layers.py resnet50 0.001 --batch_size 32``.

For each distinct layer, in turns: the dense layer, and each method that can compute the compact one; beside the compact ones what the plan
predicts, and which one it picks. The dense layer and the plan's choice are taken apart, too: the forward pass, the gradient of the inputs, and that of
what is trained, each alone. The last lines add up the layers of the network, and compare the plan's choices with the best ones: its regret. With
``--save NAME`` the figures are written to benchmarks/results/NAME.json. Needs the package installed, or ``PYTHONPATH=.``.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from record import describe_run, save

from dctps_jax import models, plan, pruning
from dctps_jax.analysis.plan_table import planned
from dctps_jax.compiler import compiler_options
from dctps_jax.convolution import convolve
from dctps_jax.execution import apply_kernel
from dctps_jax.training.memory import keep_freed_memory

DENSE_LAYER = "dense layer"
OPERATIONS = ("forward", "inputs", "trained", "all")


def layers_of(
    network: str, density: float, batch_size: int, num_classes: int, offset: str | None
) -> Counter[plan.Work]:
    """Return what the layers of a network have to compute, each with the number of layers that do."""
    model = models.create_model(
        network, num_classes=num_classes, offset=offset, rngs=nnx.Rngs(0),
        choose_support=lambda shapes: pruning.random_supports(
            jax.random.key(0), shapes, pruning.allocate(shapes, density, "epl")
        ),
    )  # fmt: skip
    return Counter(work for _, work, _ in planned(model, (batch_size, 32, 32, 3)))


def program_of(work: plan.Work, method: str, operation: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return a compiled function that does one of :data:`OPERATIONS` of a layer, and arguments for it."""
    rng = np.random.default_rng(0)
    shape = work.geometry.kernel_shape
    support = jnp.asarray(np.sort(rng.choice(int(np.prod(shape)), work.nnz, replace=False)), jnp.int32)
    inputs = jnp.asarray(rng.normal(size=work.inputs), jnp.float32)
    if method == DENSE_LAYER:
        trained: Any = jnp.asarray(0.1 * rng.normal(size=shape), jnp.float32)

        def layer(inputs: Any, kernel: Any, support: Any) -> Any:
            return convolve(inputs, kernel, work.geometry)
    else:
        trained = jnp.asarray(0.1 * rng.normal(size=work.nnz), jnp.float32), jnp.float32(1) if work.offset else None

        def layer(inputs: Any, trained: Any, support: Any) -> Any:
            return apply_kernel(method, work.geometry, inputs, *trained, support)

    outputs = jax.eval_shape(layer, inputs, trained, support)
    gradient = jnp.asarray(rng.normal(size=outputs.shape), jnp.float32)

    def program(inputs: Any, trained: Any, support: Any, gradient: Any) -> Any:
        outputs, pull = jax.vjp(lambda *arguments: layer(*arguments, support), inputs, trained)
        to_inputs, to_trained = pull(gradient)
        results = {"forward": outputs, "inputs": to_inputs, "trained": to_trained}
        return results if operation == "all" else results[operation]

    arguments = (inputs, trained, support, gradient)
    return jax.jit(program).lower(*arguments).compile(compiler_options()), arguments


def compiled(work: plan.Work, parts: list[tuple[str, str]]) -> dict[tuple[str, str], Any]:
    """Return the programs of (method, operation) and their arguments, compiled side by side."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(parts, pool.map(lambda part: program_of(work, *part), parts), strict=True))


def measure(programs: dict[Any, Any], repeats: int) -> dict[Any, float]:
    """Return the least CPU seconds of each program, run in turns."""
    best = dict.fromkeys(programs, float("inf"))
    for _ in range(repeats + 1):
        for name, (program, arguments) in programs.items():
            started = time.process_time()
            jax.block_until_ready(program(*arguments))
            best[name] = min(best[name], time.process_time() - started)
    return best


def figures_of(work: plan.Work, count: int, repeats: int) -> dict[str, Any]:
    """Return what was measured of a layer, in seconds."""
    methods = plan.possible_methods(work)
    choice = plan.choose("auto", work, jnp.float32, "cpu")
    whole = measure(compiled(work, [(method, "all") for method in (DENSE_LAYER, *methods)]), repeats)
    parts = [(method, operation) for method in (DENSE_LAYER, choice) for operation in OPERATIONS[:-1]]
    apart = measure(compiled(work, parts), repeats)
    return {
        "layers": count,
        "kernel": list(work.geometry.kernel_shape),
        "stride": max(work.geometry.strides, default=1),
        "inputs": list(work.inputs),
        "nnz": work.nnz,
        "choice": choice,
        "seconds": {method: seconds for (method, _), seconds in whole.items()},
        "predicted_seconds": {method: plan.predicted_seconds(work, method) for method in methods},
        "dense_layer": {operation: apart[DENSE_LAYER, operation] for operation in OPERATIONS[:-1]},
        "chosen": {operation: apart[choice, operation] for operation in OPERATIONS[:-1]},
    }


def table(layers: list[dict[str, Any]]) -> str:
    """Return the layers' figures as a Markdown table, in milliseconds."""
    head = ["layers", "kernel", "stride", "inputs", "nnz", DENSE_LAYER, *plan.METHODS, "dense apart", "plan apart"]
    rows = []
    for layer in layers:
        methods = [
            f"{1e3 * layer['seconds'][method]:.1f} ({1e3 * layer['predicted_seconds'][method]:.1f})"
            + ("*" if method == layer["choice"] else "")
            if method in layer["seconds"]
            else ""
            for method in plan.METHODS
        ]
        apart = [
            " + ".join(f"{1e3 * layer[kind][name]:.1f}" for name in OPERATIONS[:-1])
            for kind in ("dense_layer", "chosen")
        ]
        shapes = ["×".join(map(str, layer[name])) for name in ("kernel", "inputs")]
        rows.append(
            [str(layer["layers"]), shapes[0], str(layer["stride"]), shapes[1], str(layer["nnz"]), f"{1e3 * layer['seconds'][DENSE_LAYER]:.1f}", *methods, *apart]
        )  # fmt: skip
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---:"] * len(head), *rows)]
    return "\n".join(lines)


def totals(layers: list[dict[str, Any]]) -> str:
    """Return the sums over all layers of the network as text."""

    def total(seconds: Callable[[dict[str, Any]], float]) -> float:
        return 1e3 * sum(layer["layers"] * seconds(layer) for layer in layers)

    lines = []
    for name, kind, whole in (
        ("dense layers", "dense_layer", lambda layer: layer["seconds"][DENSE_LAYER]),
        ("as planned", "chosen", lambda layer: layer["seconds"][layer["choice"]]),
    ):
        apart = [
            f"{operation} {total(lambda layer, o=operation, k=kind: layer[k][o]):.0f}" for operation in OPERATIONS[:-1]
        ]
        lines.append(f"{name}: {total(whole):.0f} ms ({', '.join(apart)} alone)")
    planned_time = total(lambda layer: layer["seconds"][layer["choice"]])
    best = total(lambda layer: min(time for method, time in layer["seconds"].items() if method != DENSE_LAYER))
    lines.append(f"at best {best:.0f} ms: regret {planned_time / best - 1:.1%}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("network")
    parser.add_argument("density", type=float)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--num_classes", type=int, default=100)
    parser.add_argument("--offset", default="dct")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", default="", help="write benchmarks/results/NAME.json")
    arguments = parser.parse_args()
    if jax.default_backend() != "cpu":
        sys.exit("layers: the seconds of a CPU are measured; set JAX_PLATFORMS=cpu")
    keep_freed_memory()
    offset = None if arguments.offset == "none" else arguments.offset
    works = layers_of(arguments.network, arguments.density, arguments.batch_size, arguments.num_classes, offset)
    layers = [figures_of(work, count, arguments.repeats) for work, count in works.items()]
    print("CPU milliseconds of a step, measured (predicted); * the plan's choice; apart: forward + inputs + trained")
    print(table(layers))
    print(totals(layers))
    save(arguments.save, describe_run(arguments) | {"layers": layers})


if __name__ == "__main__":
    main()
