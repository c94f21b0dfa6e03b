"""Estimate each method on each layer for a TPU that is not there: ``python benchmarks/tpu_layers.py vgg19 0.001``.

Like ``layers.py``, but nothing runs. Each method is compiled for the TPU, forward pass and gradients in one program.
Its time is the sum of the cycles that the compiler estimates. Gathers and scatters of single numbers have no estimate,
so methods that use them take longer than printed. The number of operations without an estimate stands in brackets.
Needs ``pip install -e '.[tpu]'`` and no TPU. ``--save NAME`` writes the figures to benchmarks/results/NAME.json, which
``fit_costs.py`` reads.
"""

import argparse
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from tpu import CHIPS, chips  # sets what the TPU's compiler needs, before JAX is imported

# isort: split
import jax
import jax.numpy as jnp
from hlo import Program
from layers import DENSE_LAYER, arguments_of, describe_layer, layers_of, step_of
from record import describe_run, save

from dctps_jax.ops import target
from dctps_jax.ops.cost_model import choose, predicted_seconds
from dctps_jax.ops.methods import METHODS, possible_methods
from dctps_jax.ops.work import Work


def compile_layer(work: Work, method: str, dtype: Any, device: Any) -> Any:
    """Return the compiled program of a layer, forward and all gradients, for activations of ``dtype``."""
    placed = jax.sharding.SingleDeviceSharding(device)

    def abstract(tree: Any, dtype: Any = None) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=placed), tree)

    inputs, trained, support, gradient = jax.eval_shape(lambda: arguments_of(work, method))
    given = abstract(inputs, dtype), abstract(trained), abstract(support), abstract(gradient, dtype)
    with target.tracing_for("tpu"):
        return jax.jit(step_of(work, method)).lower(*given).compile()


def figures_of(work: Work, count: int, methods: Sequence[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the estimated and the predicted seconds of a layer."""
    chip, (device,) = CHIPS[arguments.chip], chips(arguments.chip, 1)
    dtype = jnp.dtype(arguments.dtype)
    seconds, without_estimate = {}, {}
    for method in (DENSE_LAYER, *(method for method in possible_methods(work) if method in methods)):
        operations = Program(compile_layer(work, method, dtype, device).as_text()).operations()
        seconds[method] = sum(operation.cycles or 0 for operation in operations) / chip.hertz
        without_estimate[method] = sum(operation.times for operation in operations if operation.lacks_estimate)
    return describe_layer(work, count) | {
        "choice": choose("auto", work, dtype, "tpu"),
        "seconds": seconds,
        "without_estimate": without_estimate,
        "predicted_seconds": {
            method: predicted_seconds(work, method, dtype, "tpu") for method in seconds if method != DENSE_LAYER
        },
    }


def row(layer: dict[str, Any]) -> str:
    """Return the figures of a layer as a row of a Markdown table, in microseconds."""
    shapes = ["×".join(map(str, layer[name])) for name in ("kernel", "inputs")]
    cells = [str(layer["layers"]), shapes[0], str(layer["stride"]), shapes[1], str(layer["nnz"])]
    for method in (DENSE_LAYER, *METHODS):
        known = method in layer["seconds"]
        cells.append(f"{1e6 * layer['seconds'][method]:.0f} ({layer['without_estimate'][method]})" if known else "")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("network", help="the name of a network, or linear:INxOUT,INxOUT,…")
    parser.add_argument("density", type=float)
    parser.add_argument("--chip", default="v5e", choices=tuple(CHIPS))
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"), help="of the activations")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--num_classes", type=int, default=10)
    parser.add_argument("--offset", default="dct")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--save", default="", help="write benchmarks/results/NAME.json")
    arguments = parser.parse_args()
    offset = None if arguments.offset == "none" else arguments.offset
    works = layers_of(arguments.network, arguments.density, arguments.batch_size, arguments.num_classes, offset)
    described = describe_run(arguments)
    described["libtpu"] = version("libtpu")
    described["environment"]["device"] = f"1 × tpu {arguments.chip}, by its compiler's estimates"
    titles = ["layers", "kernel", "stride", "inputs", "nnz", DENSE_LAYER, *METHODS]
    print("estimated microseconds of a step (operations without an estimate, not in the sum)")
    print(f"| {' | '.join(titles)} |", "| ---: " * len(titles) + "|", sep="\n", flush=True)
    layers: list[dict[str, Any]] = []
    for work, count in works.items():
        layers.append(figures_of(work, count, arguments.methods, arguments))
        print(row(layers[-1]), flush=True)
        save(arguments.save, described | {"layers": layers})


if __name__ == "__main__":
    main()
