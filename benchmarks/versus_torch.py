"""Time training steps of this package and of PyTorch: ``python benchmarks/versus_torch.py resnet50 vgg19``.

The variants of each network, each in a process of its own, all on random images that stay on the device:

- PyTorch dense: contiguous in float32 (TF32 on a GPU); on a CPU also channels_last, without and with
  ``torch.compile``; on a GPU also autocast to bfloat16, channels_last and ``torch.compile``, without and with CUDA
  graphs;
- PyTorch with DCT layers as the original code computes them (``torch_networks.py``);
- this package, dense and with the DCT offset at ``--densities``, in ``--dtypes``.

All train with Adam (0.001, L2 of 5e-4), random crops and flips. The processes of a network compile first,
``--compile_jobs`` at once. Then their steps take turns, so that other work on the machine slows all of them alike. On a
CPU all have the same ``--threads`` processors. The script prints milliseconds a step (minimum and median; it waits for
a GPU after every 50 steps), the peak memory of a step (PyTorch on a CPU: of the process), and the compile seconds
(PyTorch: of the first step). With ``--save NAME``, benchmarks/results/NAME.json has the figures so far after every
turn. Needs PyTorch (``pip install -e '.[versus]'``) and the package installed, or ``PYTHONPATH=.``.
"""

import argparse
import importlib.util
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import wait
from typing import Any, NamedTuple

from tables import versus_torch

NETWORKS = ("lenet", "vgg19", "resnet50", "mobilenet_v2", "fixup_resnet110")
GPU_STEPS = 50  # between two waits for the device
END_SECONDS = 5  # for a process to leave


class Variant(NamedTuple):
    """What one process trains; ``density`` is 1 for dense networks, the others have the DCT offset."""

    name: str
    library: str
    density: float
    dtype: str = "float32"
    channels_last: bool = False
    compiled: str = ""  # the mode of torch.compile


def variants(platform: str, densities: list[float], dtypes: list[str]) -> list[Variant]:
    chosen = [Variant("PyTorch dense", "torch", 1)]
    if platform == "cpu":
        chosen += [
            Variant("PyTorch dense, channels_last", "torch", 1, channels_last=True),
            Variant("PyTorch dense, channels_last, compiled", "torch", 1, channels_last=True, compiled="default"),
        ]
    else:
        chosen += [
            Variant("PyTorch dense, bfloat16, compiled", "torch", 1, "bfloat16", True, "default"),
            Variant("PyTorch dense, bfloat16, CUDA graphs", "torch", 1, "bfloat16", True, "reduce-overhead"),
        ]
    # Masks cost the same at every density.
    chosen.append(Variant("PyTorch DCT, two convolutions", "torch", densities[0]))
    for dtype in dtypes:
        for density in (1.0, *densities):
            name = "dense" if density == 1 else f"DCT {density:g}"
            chosen.append(Variant(f"this package, {name}, {dtype}", "jax", density, dtype))
    return chosen


class PackageSteps:
    """A network of this package in its training program, as ``train_step.py`` times it."""

    def __init__(self, network: str, variant: Variant, options: argparse.Namespace):
        import jax
        from train_step import Case

        from dctps_jax.training.memory import keep_freed_memory

        keep_freed_memory()
        steps = 0 if jax.default_backend() == "cpu" else GPU_STEPS
        given = argparse.Namespace(**vars(options), dtype=variant.dtype, steps_per_dispatch=steps)
        self.case = Case(f"{network}:{'none' if variant.density == 1 else 'dct'}:{variant.density:g}", given)
        self.compile_seconds = self.case.compile_seconds
        self.trainable = sum(leaf.size for leaf in jax.tree.leaves(self.case.state.params))

    def chunk(self) -> float:
        return self.case.run().wall

    def peak_bytes(self) -> int:
        return self.case.peak_bytes


def work(pipe: Any, network: str, variant: Variant, options: argparse.Namespace) -> None:
    """Make a variant ready, then take steps for as many seconds as asked, until the parent process says to stop."""
    try:
        if options.platform == "cpu" and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
        if variant.library == "torch":
            from torch_step import TorchSteps

            program = TorchSteps(network, variant, options, GPU_STEPS)
        else:
            program = PackageSteps(network, variant, options)
        program.chunk()  # warms up
        pipe.send({"compile_seconds": program.compile_seconds, "trainable": program.trainable})
        while (seconds := pipe.recv()) is not None:
            times, end = [], time.perf_counter() + seconds
            while not times or time.perf_counter() < end:
                times.append(program.chunk())
            process_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            peak_bytes = program.peak_bytes() or process_bytes
            pipe.send({"times": times, "peak_bytes": peak_bytes, "process_bytes": process_bytes})
    except Exception as error:
        pipe.send({"error": f"{type(error).__name__}: {str(error).strip()[:300]}"})


class Worker:
    """The process of a variant, and its answers so far: ``figures`` is the case in the saved file."""

    def __init__(self, network: str, variant: Variant, options: argparse.Namespace, compile_limit: float):
        self.deadline = time.perf_counter() + compile_limit
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, network, variant, options), daemon=False)
        self.process.start()
        theirs.close()
        self.variant, self.times = variant, []
        self.figures: dict[str, Any] = {"network": network, "case": variant.name, "library": variant.library}

    def receive(self, timeout: float) -> None:
        """Read the next answer; a process that fails, dies or takes too long leaves the comparison."""
        try:
            answer = self.pipe.recv() if self.pipe.poll(timeout) else {"error": f"no answer within {timeout:.0f} s"}
        except (EOFError, ConnectionError):
            answer = {"error": "the process died"}
        if "error" in answer:
            self.give_up(answer["error"])
            return
        self.times += answer.pop("times", [])
        self.figures |= answer
        if self.times:
            self.figures["wall_seconds_minimum"] = min(self.times)
            self.figures["wall_seconds_median"] = statistics.median(self.times)

    def give_up(self, reason: str) -> None:
        self.figures["error"] = reason
        self.process.kill()
        print(f"{self.figures['network']}, {self.variant.name}: {reason}", flush=True)

    def take_turn(self, seconds: float, timeout: float) -> None:
        self.pipe.send(seconds)
        self.receive(seconds + timeout)

    def dismiss(self) -> None:
        if "error" not in self.figures and self.process.is_alive():
            self.pipe.send(None)

    def end(self) -> None:
        self.process.join(0 if "error" in self.figures else END_SECONDS)
        self.process.kill()
        self.process.join()


def compare(network: str, options: argparse.Namespace, arguments: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """Compile the variants of a network and time them in turns; yield the figures of all after each turn."""
    waiting = variants(options.platform, arguments.densities, arguments.dtypes)
    workers: list[Worker] = []
    try:
        starting: list[Worker] = []
        while waiting or starting:
            while waiting and len(starting) < arguments.compile_jobs:
                starting.append(Worker(network, waiting.pop(0), options, arguments.compile_limit))
                workers.append(starting[-1])
            first_deadline = min(worker.deadline for worker in starting)
            wait([worker.pipe for worker in starting], timeout=max(0, first_deadline - time.perf_counter()))
            for worker in list(starting):
                if worker.pipe.poll():
                    worker.receive(0)
                elif time.perf_counter() < worker.deadline:
                    continue
                else:
                    worker.give_up(f"not ready within {arguments.compile_limit:g} s; raise --compile_limit")
                starting.remove(worker)
        check_trainable(workers)
        for _ in range(arguments.turns):
            for worker in workers:
                if "error" not in worker.figures:
                    worker.take_turn(arguments.seconds / arguments.turns, arguments.compile_limit)
            yield [worker.figures for worker in workers]
    finally:
        for worker in workers:
            worker.dismiss()
        for worker in workers:
            worker.end()


def check_trainable(workers: list[Worker]) -> None:
    """Check that networks of the same density train equally many numbers in both libraries."""
    for density in {worker.variant.density for worker in workers}:
        same = [worker.figures for worker in workers if worker.variant.density == density]
        counts = {figures["trainable"] for figures in same if "trainable" in figures}
        if len(counts) > 1:
            sys.exit(f"the variants with density {density:g} train different numbers of parameters: {sorted(counts)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="+", choices=NETWORKS)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--num_classes", type=int, default=10)
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--densities", type=float, nargs="+", default=[1e-2, 1e-3, 1e-4])
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument("--seconds", type=float, default=10, help="of timed steps a variant")
    parser.add_argument("--turns", type=int, default=5, help="that the seconds are divided into")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="processors a variant has on a CPU")
    parser.add_argument("--compile_jobs", type=int, default=0, help="at once; 0: 1 on a CPU, all elsewhere")
    parser.add_argument("--compile_limit", type=float, default=600, help="seconds until a variant is ready")
    parser.add_argument("--save", default="", help="write benchmarks/results/NAME.json")
    arguments = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        sys.exit("versus_torch.py: PyTorch is not installed; install it: pip install -e '.[versus]'")
    # Many processes share the GPU; set before JAX is imported, and inherited.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax
    import torch  # pyright: ignore[reportMissingImports]  # an extra: "versus"
    from record import describe_run, save

    platform, theirs = jax.default_backend(), "gpu" if torch.cuda.is_available() else "cpu"
    if platform != theirs:
        sys.exit(
            f"versus_torch.py: JAX runs on a {platform} and PyTorch on a {theirs}; install both for the same device"
        )
    arguments.compile_jobs = arguments.compile_jobs or (1 if platform == "cpu" else 100)
    names = ("batch_size", "num_classes", "image_size", "threads")
    options = argparse.Namespace(**{name: getattr(arguments, name) for name in names}, platform=platform)
    result = describe_run(arguments)
    result["environment"]["torch"] = torch.__version__
    result["cases"] = []
    for network in arguments.networks:
        before = result["cases"]
        for cases in compare(network, options, arguments):
            result["cases"] = before + cases
            save(arguments.save, result)
        print(versus_torch(result["cases"][len(before) :]), flush=True)


if __name__ == "__main__":
    main()
