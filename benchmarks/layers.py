"""Time every way of computing each layer of a network: ``python benchmarks/layers.py resnet50 0.001 --batch_size 32``.

For each distinct layer: forward, input gradient, values' gradient and α's gradient together, by each method that can compute
it, in turns; beside them what the plan predicts and picks. The last line compares the sum over all layers as the plan picks
them with the sum of the best: its regret. Needs the package installed, or ``PYTHONPATH=.``.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dctps_jax import models, plan, pruning
from dctps_jax.analysis.plan_table import planned
from dctps_jax.compiler import compiler_options
from dctps_jax.execution import apply_kernel
from dctps_jax.training.memory import keep_freed_memory


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


def step_of(work: plan.Work, method: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return a function that computes a layer and all its gradients, and arguments for it."""
    rng = np.random.default_rng(0)
    size = int(np.prod(work.geometry.kernel_shape))
    support = jnp.asarray(np.sort(rng.choice(size, work.nnz, replace=False)), jnp.int32)
    inputs = jnp.asarray(rng.normal(size=work.inputs), jnp.float32)
    values = jnp.asarray(0.1 * rng.normal(size=work.nnz), jnp.float32)
    alpha = jnp.float32(1) if work.offset else None
    apply = partial(apply_kernel, method, work.geometry)
    outputs = jax.eval_shape(apply, inputs, values, alpha, support)
    gradient = jnp.asarray(rng.normal(size=outputs.shape), jnp.float32)

    def step(inputs: Any, values: Any, alpha: Any, support: Any, gradient: Any) -> Any:
        outputs, pull = jax.vjp(lambda *trained: apply(*trained, support), inputs, values, alpha)
        return outputs, pull(gradient)

    return jax.jit(step, compiler_options=compiler_options()), (inputs, values, alpha, support, gradient)


def measure(work: plan.Work, repeats: int) -> dict[str, float]:
    """Return the least CPU seconds of a step by each method."""
    steps = {method: step_of(work, method) for method in plan.possible_methods(work)}
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(repeats + 1):
        for method, (step, arguments) in steps.items():
            started = time.process_time()
            jax.block_until_ready(step(*arguments))
            best[method] = min(best[method], time.process_time() - started)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("network")
    parser.add_argument("density", type=float)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--num_classes", type=int, default=100)
    parser.add_argument("--offset", default="dct")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    keep_freed_memory()
    offset = None if arguments.offset == "none" else arguments.offset
    layers = layers_of(arguments.network, arguments.density, arguments.batch_size, arguments.num_classes, offset)
    print("CPU milliseconds of a step, measured (predicted); * the plan's choice")
    print("| layers | kernel | stride | inputs | nnz | " + " | ".join(plan.METHODS) + " |")
    print("| ---: | --- | ---: | --- | ---: | " + " | ".join("---:" for _ in plan.METHODS) + " |")
    total = best = 0.0
    for work, count in layers.items():
        measured = measure(work, arguments.repeats)
        choice = plan.choose("auto", work, jnp.float32, "cpu")
        total, best = total + count * measured[choice], best + count * min(measured.values())
        cells = [
            f"{1e3 * measured[method]:.1f} ({1e3 * plan.predicted_seconds(work, method):.1f})"
            + ("*" if method == choice else "")
            if method in measured
            else ""
            for method in plan.METHODS
        ]
        shape = "×".join(map(str, work.geometry.kernel_shape))
        stride = max(work.geometry.strides, default=1)
        print(
            f"| {count} | {shape} | {stride} | {'×'.join(map(str, work.inputs))} | {work.nnz} | {' | '.join(cells)} |"
        )
    print(f"all layers as planned {1e3 * total:.0f} ms, at best {1e3 * best:.0f} ms: regret {total / best - 1:.1%}")


if __name__ == "__main__":
    main()
