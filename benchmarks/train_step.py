"""Time training steps side by side: ``python benchmarks/train_step.py resnet50:none:1 resnet50:dct:0.001``.

A case is NETWORK:OFFSET:DENSITY, NETWORK:OFFSET:DENSITY:FORM or NETWORK:OFFSET:DENSITY:FORM:METHOD. The forms are
"compact" (the default) and "masked", the methods those of ``config.execution.method``. All cases are compiled first.
Then their steps take turns, so that other work on the machine slows all of them alike. The script prints the compile
time, minimum and median of the wall seconds a step, the least CPU seconds, the bytes of parameters and optimiser, the
bytes that the step holds at its peak (its arguments and temporaries, as the compiler allocates them), and the ratio of
the minima to the first case's. ``--save NAME`` also writes the figures to benchmarks/results/NAME.json. Needs the
package installed, or ``PYTHONPATH=.``.
"""

import argparse
import statistics
import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from record import describe_run, save

from dctps_jax import models, pruning
from dctps_jax.data.batches import Examples, Normalization
from dctps_jax.optimizers import make_optimizer
from dctps_jax.training import loop
from dctps_jax.training.memory import keep_freed_memory
from dctps_jax.training.placement import place_on_all_devices
from dctps_jax.training.state import create_state
from dctps_jax.training.step import zero_sums
from dctps_jax.training.step_spec import StepSpec, default_steps_per_dispatch


class Case:
    """One network in training on random images; ``run`` makes one dispatch and waits for it."""

    def __init__(self, name: str, arguments: argparse.Namespace):
        network, offset, density, form, method = case_parts(name)
        self.name = name
        model = build(network, None if offset == "none" else offset, float(density), form, method, arguments)
        optimizer = make_optimizer("adam", 0.001, momentum=0.9, weight_decay=5e-4, fixup=models.is_fixup(network))
        rng = np.random.default_rng(0)
        count, size = 10 * arguments.batch_size, arguments.image_size
        images = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        placement = place_on_all_devices()
        graphs, state = create_state(model, optimizer, placement.axis_name)
        self.state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.supports, state.opt_state)))
        labels = rng.integers(0, arguments.num_classes, count, dtype=np.int32)
        self.train = placement.put(Examples(images, labels).in_rows())
        steps = arguments.steps_per_dispatch or default_steps_per_dispatch(placement.platform)
        spec = StepSpec(
            batch_size=arguments.batch_size,
            eval_batch_size=arguments.batch_size,
            steps_per_epoch=max(10, steps),
            steps_per_dispatch=steps,
            normalization=Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
            augmented=True,
            seed=0,
        )
        self.steps = steps
        self.state, self.sums = placement.put(state), placement.put(zero_sums())
        self.epoch = placement.put(loop.epoch_of(0, spec, np.arange(count, dtype=np.int32)))
        setup = loop.Setup(spec, graphs, optimizer, placement)
        take_steps = partial(loop.take_steps, num_steps=self.steps, setup=setup)
        started = time.perf_counter()
        self.program = placement.compile(take_steps, (self.state, self.sums, self.train, self.epoch), (0, 1))
        self.compile_seconds = time.perf_counter() - started
        memory = self.program.memory_analysis()
        assert memory is not None, "the compiler of this device does not tell what a program allocates"
        self.peak_bytes = memory.temp_size_in_bytes + memory.argument_size_in_bytes
        self.times: list[Times] = []

    def run(self) -> "Times":
        wall, cpu = time.perf_counter(), time.process_time()
        self.state, self.sums = jax.block_until_ready(self.program(self.state, self.sums, self.train, self.epoch))
        return Times((time.perf_counter() - wall) / self.steps, (time.process_time() - cpu) / self.steps)

    def figures(self) -> dict[str, Any]:
        wall, cpu = zip(*self.times, strict=True)
        return {
            "case": self.name,
            "compile_seconds": self.compile_seconds,
            "wall_seconds_minimum": min(wall),
            "wall_seconds_median": statistics.median(wall),
            "cpu_seconds_minimum": min(cpu),
            "state_bytes": self.state_bytes,
            "peak_bytes": self.peak_bytes,
        }


class Times(NamedTuple):
    """Seconds a step."""

    wall: float
    cpu: float


def case_parts(name: str) -> list[str]:
    """Return network, offset, density, form and method of a case. The last two may be left out."""
    given = name.split(":")
    return given + ["compact", "auto"][len(given) - 3 :]


def build(network: str, offset: str | None, density: float, form: str, method: str, arguments: Any) -> nnx.Module:
    """Return a network with a random support of equally many weights a layer."""
    shapes = models.kernel_shapes(network, num_classes=arguments.num_classes)
    counts = pruning.allocate(shapes, density, "epl")
    supports = None if density == 1 else pruning.random_supports(jax.random.key(0), shapes, counts)
    model = models.create_model(
        network,
        num_classes=arguments.num_classes,
        offset=offset,
        image_size=arguments.image_size,
        dtype=None if arguments.dtype == "float32" else jnp.dtype(arguments.dtype),
        rngs=nnx.Rngs(0),
        supports=supports,
    )
    for layer in models.prunable_layers(model).values():
        layer.method = method
        if form == "masked" and layer.support is not None:
            layer.set_mask(pruning.mask_of_support(np.asarray(layer.support[...]), layer.kernel_shape))
    return model


def table(result: dict[str, Any]) -> str:
    """Return saved figures as a Markdown table; the ratio is to the first case."""
    lines = [
        "| case | compile s | step s, minimum | median | CPU s, minimum | parameters + Adam MB | peak MB | ratio |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    first = result["cases"][0]["wall_seconds_minimum"]
    for case in result["cases"]:
        lines.append(
            f"| {case['case']} | {case['compile_seconds']:.1f} | {case['wall_seconds_minimum']:.4f} | "
            f"{case['wall_seconds_median']:.4f} | {case['cpu_seconds_minimum']:.4f} | "
            f"{case['state_bytes'] / 1e6:.3f} | "
            f"{case['peak_bytes'] / 1e6:,.0f} | {first / case['wall_seconds_minimum']:.2f}× |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="+", help="e.g. resnet50:none:1 resnet50:dct:0.001 resnet50:dct:0.001:masked")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--num_classes", type=int, default=10)
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the computation")
    parser.add_argument("--steps_per_dispatch", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--keep_memory", type=int, default=1, help="as config.execution.keep_memory")
    parser.add_argument("--save", default="", help="write benchmarks/results/NAME.json")
    arguments = parser.parse_args()
    if arguments.keep_memory:
        keep_freed_memory()
    cases = [Case(name, arguments) for name in arguments.cases]
    for repeat in range(arguments.repeats + 1):
        for case in cases:
            measured = case.run()
            if repeat > 0:  # the first turn warms up
                case.times.append(measured)
    result: dict[str, Any] = describe_run(arguments) | {"cases": [case.figures() for case in cases]}
    print(
        f"batch {arguments.batch_size}, {result['machine']}, {result['environment']['device']}, jax {jax.__version__}"
    )
    print(table(result))
    save(arguments.save, result)


if __name__ == "__main__":
    main()
