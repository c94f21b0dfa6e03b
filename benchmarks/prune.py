"""Time pruning at initialisation: ``python benchmarks/prune.py resnet50 --batch_size 128``.

Each method prunes once in a process of its own. Its peak memory is the peak of this process (resident), printed beside
what the process held once the network was built and the batch was in place. There are two times: of the whole call,
with compilation, and of choosing the highest scores over all layers. Needs the package installed, or ``PYTHONPATH=.``.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

METHODS = ("epl", "random", "magnitude", "snip", "iter_snip", "force", "grasp_it", "grasp", "synflow")


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Prune by ``arguments.method`` in this process and return the figures."""
    import jax
    import numpy as np
    from flax import nnx

    from dctps_jax import models, pruning
    from dctps_jax.pruning import groups

    offset = None if arguments.offset == "none" else arguments.offset
    model = models.create_model(arguments.network, num_classes=100, offset=offset, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    size = arguments.image_size
    images = jax.numpy.asarray(rng.normal(size=(arguments.batch_size, size, size, 3)).astype(np.float32))
    batch = (images, jax.numpy.asarray(rng.integers(0, 100, arguments.batch_size, dtype=np.int32)))
    selecting = []

    def timed(select):
        def wrapper(*positional, **named):
            started = time.perf_counter()
            masks = select(*positional, **named)
            selecting.append(time.perf_counter() - started)
            return masks

        return wrapper

    groups.top_k_global = timed(groups.top_k_global)
    jax.block_until_ready(nnx.state(model))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    options = {"num_steps": arguments.num_steps} if arguments.method in pruning.SCORES else {}
    masks = pruning.prune(model, arguments.method, arguments.density, key=jax.random.key(0), batch=batch, **options)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "top_k_seconds": sum(selecting) / max(1, len(selecting)),
        "steps": len(selecting),
        "built_mib": before / 1024,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "kept": int(sum(mask.sum() for mask in masks.values())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("network", nargs="?", default="resnet50")
    parser.add_argument("--offset", default="none", help="an offset of dctps_jax.offsets, or none")
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--num_steps", type=int, default=1, help="steps of the scores; 0: each method's own number")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--method", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.method:
        print(json.dumps(measure(arguments)))
        return
    print("| method | steps | s, in all | s, highest of all layers, a step | peak MiB | with the network built |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for method in arguments.methods:
        command = [sys.executable, __file__, *sys.argv[1:], "--method", method]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if output.returncode:
            print(f"| {method} | stopped with exit status {output.returncode} | | | | |", flush=True)
            continue
        figures = json.loads(output.stdout.splitlines()[-1])
        print(
            f"| {method} | {figures['steps']} | {figures['seconds']:.1f} | {figures['top_k_seconds']:.2f} | "
            f"{figures['peak_mib']:,.0f} | {figures['built_mib']:,.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
