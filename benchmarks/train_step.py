"""Time training steps side by side: ``python benchmarks/train_step.py lenet:dct:0.01 lenet:none:1 --batch_size 128``.

A case is NETWORK:OFFSET:DENSITY or NETWORK:OFFSET:DENSITY:FORM, the form "compact" (the default) or "masked". All cases are
compiled first; then their steps take turns, so that what else the machine does falls on all of them. Reported are the
compile time, minimum and median of the wall and CPU seconds a step, images a second at the minimum, and the ratio to the
first case. Needs the package installed, or ``PYTHONPATH=.``.
"""

import argparse
import statistics
import time
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from dctps_jax import models, pruning
from dctps_jax.data.batches import Normalization, Split
from dctps_jax.training import loop
from dctps_jax.training.optimizer import make_optimizer
from dctps_jax.training.state import create_state
from dctps_jax.training.step import zero_sums


class Case:
    """One network in training on random images; ``run`` takes a dispatch and waits for it."""

    def __init__(self, name: str, arguments: argparse.Namespace):
        network, offset, density, form = (name + ":compact").split(":")[:4]
        self.name = name
        model = models.create_model(
            network, num_classes=arguments.num_classes, offset=None if offset == "none" else offset,
            image_size=arguments.image_size, rngs=nnx.Rngs(0),
        )  # fmt: skip
        if float(density) < 1:
            pruning.apply_masks(model, pruning.prune(model, "epl", float(density), key=jax.random.key(0)), form)
        optimizer = make_optimizer("adam", 0.001, momentum=0.9, weight_decay=5e-4, fixup=network.startswith("fixup"))
        rng = np.random.default_rng(0)
        count, size = 10 * arguments.batch_size, arguments.image_size
        images = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        placement = loop.place_on_all_devices()
        graphs, state = create_state(model, optimizer, placement.axis_name)
        self.train = placement.put(Split(images, rng.integers(0, arguments.num_classes, count, dtype=np.int32)))
        steps = arguments.steps_per_dispatch or loop.default_steps_per_dispatch()
        plan = loop.Plan(
            arguments.batch_size, arguments.batch_size, max(10, steps), steps,
            Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)), augmented=True, seed=0,
        )  # fmt: skip
        self.steps = plan.steps_per_dispatch
        self.state, self.sums = placement.put(state), placement.put(zero_sums())
        self.order = loop.order_of_epoch(0, plan, self.train, placement)
        advance = partial(
            loop.advance, num_steps=self.steps, plan=plan, graphs=graphs, optimizer=optimizer, placement=placement
        )
        started = time.perf_counter()
        jitted = jax.jit(advance, donate_argnums=(0, 1), out_shardings=placement.replicated)
        self.advance = jitted.lower(self.state, self.sums, self.train, self.order).compile()
        self.compile_seconds = time.perf_counter() - started

    def run(self) -> "Times":
        wall, cpu = time.perf_counter(), time.process_time()
        self.state, self.sums = jax.block_until_ready(self.advance(self.state, self.sums, self.train, self.order))
        return Times((time.perf_counter() - wall) / self.steps, (time.process_time() - cpu) / self.steps)


class Times(NamedTuple):
    """Seconds a step."""

    wall: float
    cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "cases", nargs="+", help="NETWORK:OFFSET:DENSITY[:FORM], e.g. resnet50:dct:0.001 or resnet50:none:1"
    )
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--num_classes", type=int, default=10)
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--steps_per_dispatch", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    cases = [Case(name, arguments) for name in arguments.cases]
    times: dict[str, list[Times]] = {case.name: [] for case in cases}
    for repeat in range(arguments.repeats + 1):
        for case in cases:
            measured = case.run()
            if repeat > 0:  # the first turn warms up
                times[case.name].append(measured)
    print(f"batch {arguments.batch_size}, {jax.device_count()} × {jax.devices()[0].device_kind}, jax {jax.__version__}")
    print("| case | compile s | step s, minimum | median | CPU s, minimum | images/s | ratio |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    first = min(step.wall for step in times[cases[0].name])
    for case in cases:
        wall, cpu = ([getattr(step, kind) for step in times[case.name]] for kind in ("wall", "cpu"))
        print(
            f"| {case.name} | {case.compile_seconds:.1f} | {min(wall):.4f} | {statistics.median(wall):.4f} | "
            f"{min(cpu):.4f} | {arguments.batch_size / min(wall):,.0f} | {first / min(wall):.2f}× |"
        )


if __name__ == "__main__":
    main()
