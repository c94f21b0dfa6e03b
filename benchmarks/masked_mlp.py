"""Train a multilayer perceptron with few weights, beside PyTorch and SciPy: ``python benchmarks/masked_mlp.py``.

The network is 3072-1024-512-10 with ReLU, without offset, on batches of 100 images, as in the benchmark of Nerva
(arXiv 2407.17437). All hidden and output layers keep the same share of their weights, at random. Training is plain SGD
with momentum on random images; all variants begin with the same weights and see the same batches:

- ``package``: this package's layers, compact;
- ``torch_masks``: PyTorch, dense kernels times masks;
- ``torch_csr``: PyTorch, sparse CSR matrices, gradients by ``torch.sparse.sampled_addmm``;
- ``scipy_csr``: SciPy's CSR matrices and NumPy.

Each variant has a process of its own. The processes run one after the other, in ``--turns``. The script prints the
seconds of an epoch of ``--steps`` steps (minimum over the turns) and the memory that the process holds after the epoch,
without the library and the images. The package takes 50 steps a call, as ``train.py`` does with
``--config.steps_per_dispatch=50``. The program fails if the variants' losses differ. Needs PyTorch and SciPy (``pip
install -e '.[versus]'``) and the package installed, or ``PYTHONPATH=.``. ``--save NAME`` writes the figures to
benchmarks/results/NAME.json.
"""

import argparse
import importlib
import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SIZES = (3072, 1024, 512, 10)
BATCH_SIZE, NUM_IMAGES = 100, 5000
RATE, MOMENTUM = 0.01, 0.9
# Steps of this package in one call.
STEPS_PER_CALL = 50
# How far losses of the first and of the last step may differ: each library sums in another order, and differences grow.
TOLERANCES = (1e-5, 0.02)


class Layer(NamedTuple):
    """The trained weights of a layer: positions in its flattened kernel ``[in, out]``, ascending, and values."""

    inputs: int
    outputs: int
    positions: np.ndarray
    values: np.ndarray


class Problem(NamedTuple):
    layers: list[Layer]
    images: np.ndarray
    labels: np.ndarray

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        begin = step * BATCH_SIZE % NUM_IMAGES
        return self.images[begin : begin + BATCH_SIZE], self.labels[begin : begin + BATCH_SIZE]


def make_problem(density: float) -> Problem:
    rng = np.random.default_rng(0)
    layers = []
    for inputs, outputs in itertools.pairwise(SIZES):
        count = round(density * inputs * outputs)
        positions = np.sort(rng.choice(inputs * outputs, count, replace=False)).astype(np.int32)
        # Each output sums over density · inputs weights.
        values = rng.normal(size=count) * math.sqrt(2 / max(1, density * inputs))
        layers.append(Layer(inputs, outputs, positions, values.astype(np.float32)))
    images = rng.normal(size=(NUM_IMAGES, SIZES[0])).astype(np.float32)
    return Problem(layers, images, rng.integers(0, SIZES[-1], NUM_IMAGES).astype(np.int32))


# A function that takes the steps with these numbers and returns the loss of the last one.
Train = Callable[[range], float]


def package(problem: Problem) -> Train:
    import jax
    import optax
    from flax import nnx

    from dctps_jax import DCTpSLinear, compiler_options
    from dctps_jax.ops.target import tracing_for

    modules = []
    for layer in problem.layers:
        module = DCTpSLinear(
            layer.inputs, layer.outputs, use_bias=False, offset=None, support=layer.positions, rngs=nnx.Rngs(0)
        )
        module.kernel[...] = jax.numpy.asarray(layer.values)
        modules += [module, nnx.relu]
    graph, params, rest = nnx.split(nnx.Sequential(*modules[:-1]), nnx.Param, ...)
    optimizer = optax.sgd(RATE, MOMENTUM)
    images, labels = jax.numpy.asarray(problem.images), jax.numpy.asarray(problem.labels)

    def steps(params: Any, moments: Any, rest: Any, images: jax.Array, labels: jax.Array, begins: jax.Array) -> Any:
        def step(state: Any, begin: jax.Array) -> Any:
            params, moments = state
            x, y = (jax.lax.dynamic_slice_in_dim(array, begin, BATCH_SIZE) for array in (images, labels))

            def loss_of(params: Any) -> jax.Array:
                logits = nnx.merge(graph, params, rest)(x)
                return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

            loss, gradients = jax.value_and_grad(loss_of)(params)
            updates, moments = optimizer.update(gradients, moments, params)
            return (optax.apply_updates(params, updates), moments), loss

        state, losses = jax.lax.scan(step, (params, moments), begins)
        return *state, losses[-1]

    compiled = jax.jit(steps, donate_argnums=(0, 1), compiler_options=compiler_options())
    moments = optimizer.init(params)

    def train(numbers: range) -> float:
        nonlocal params, moments
        loss = jax.numpy.nan
        for begin in range(0, len(numbers), STEPS_PER_CALL):
            begins = np.array(numbers[begin : begin + STEPS_PER_CALL], np.int32) * BATCH_SIZE % NUM_IMAGES
            with tracing_for(jax.default_backend()):
                params, moments, loss = compiled(params, moments, rest, images, labels, begins)
        return float(loss)

    return train


def torch_steps(problem: Problem, layers: list[Any], weights: list[Any]) -> Train:
    import torch  # pyright: ignore[reportMissingImports]  # an extra: "versus"

    torch.set_num_threads(os.cpu_count() or 1)
    optimizer = torch.optim.SGD(weights, lr=RATE, momentum=MOMENTUM)
    images, labels = torch.from_numpy(problem.images), torch.from_numpy(problem.labels.astype(np.int64))

    def take(number: int) -> float:
        begin = number * BATCH_SIZE % NUM_IMAGES
        x = images[begin : begin + BATCH_SIZE]
        for layer in layers[:-1]:
            x = torch.relu(layer(x))
        loss = torch.nn.functional.cross_entropy(layers[-1](x), labels[begin : begin + BATCH_SIZE])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return one_by_one(take)


def one_by_one(take: Callable[[int], Any]) -> Train:
    def train(numbers: range) -> float:
        for number in numbers[:-1]:
            take(number)
        return float(take(numbers[-1]))

    return train


def torch_masks(problem: Problem) -> Train:
    import torch  # pyright: ignore[reportMissingImports]

    def dense(layer: Layer, values: np.ndarray | float) -> Any:
        kernel = np.zeros((layer.inputs, layer.outputs), np.float32)
        kernel.reshape(-1)[layer.positions] = values
        return torch.from_numpy(np.ascontiguousarray(kernel.T))

    weights = [dense(layer, layer.values).requires_grad_() for layer in problem.layers]
    masks = [dense(layer, 1.0) for layer in problem.layers]
    pairs = zip(weights, masks, strict=True)
    layers = [lambda x, w=weight, m=mask: torch.nn.functional.linear(x, w * m) for weight, mask in pairs]
    return torch_steps(problem, layers, weights)


def torch_csr(problem: Problem) -> Train:
    import torch  # pyright: ignore[reportMissingImports]

    class Product(torch.autograd.Function):
        """``x W`` with W as a CSR matrix ``[out, in]``, and as one ``[in, out]`` for the gradient of x."""

        @staticmethod
        def forward(context: Any, x: Any, values: Any, places: Any) -> Any:
            context.save_for_backward(x, values)
            context.places = places
            return (places.matrix(values[places.order]) @ x.T).T

        @staticmethod
        def backward(context: Any, *gradients: Any) -> Any:
            (gradient,), (x, values), places = gradients, context.saved_tensors, context.places
            to_x = (places.transposed(values) @ gradient.T).T if context.needs_input_grad[0] else None
            zeros = places.transposed(torch.zeros_like(values))
            picked = torch.sparse.sampled_addmm(zeros, x.T.contiguous(), gradient.contiguous())
            return to_x, picked.values(), None

    class Places:
        def __init__(self, layer: Layer):
            self.shape = layer.inputs, layer.outputs
            row, column = np.divmod(layer.positions, layer.outputs)
            self.order = torch.from_numpy(np.lexsort((row, column)))
            self.by_input = self._indices(row, column, layer.inputs)
            order = self.order.numpy()
            self.by_output = self._indices(column[order], row[order], layer.outputs)

        @staticmethod
        def _indices(row: np.ndarray, column: np.ndarray, rows: int) -> Any:
            starts = np.searchsorted(row, np.arange(rows + 1)).astype(np.int32)
            return torch.from_numpy(starts), torch.from_numpy(column.astype(np.int32))

        def matrix(self, values: Any) -> Any:
            return torch.sparse_csr_tensor(*self.by_output, values, self.shape[::-1])

        def transposed(self, values: Any) -> Any:
            return torch.sparse_csr_tensor(*self.by_input, values, self.shape)

    torch.sparse.check_sparse_tensor_invariants.disable()
    weights = [torch.from_numpy(layer.values.copy()).requires_grad_() for layer in problem.layers]
    pairs = zip(weights, map(Places, problem.layers), strict=True)
    layers = [lambda x, v=values, p=places: Product.apply(x, v, p) for values, places in pairs]
    return torch_steps(problem, layers, weights)


def scipy_csr(problem: Problem) -> Train:
    from scipy.sparse import csr_matrix

    rows, columns, matrices, moments = [], [], [], []
    for layer in problem.layers:
        row, column = np.divmod(layer.positions, layer.outputs)
        rows.append(row)
        columns.append(column)
        starts = np.searchsorted(row, np.arange(layer.inputs + 1)).astype(np.int32)
        matrices.append(csr_matrix((layer.values.copy(), column, starts), shape=(layer.inputs, layer.outputs)))
        moments.append(np.zeros_like(layer.values))

    def take(number: int) -> float:
        x, labels = problem.batch(number)
        seen = [np.ascontiguousarray(x.T)]  # [features, batch]
        for index, matrix in enumerate(matrices):
            outputs = matrix.T @ seen[-1]
            seen.append(np.maximum(outputs, 0) if index < len(matrices) - 1 else outputs)
        logits = seen.pop()
        exponentials = np.exp(logits - logits.max(0))
        chances = exponentials / exponentials.sum(0)
        loss = -np.log(chances[labels, np.arange(BATCH_SIZE)]).mean()
        gradient = chances
        gradient[labels, np.arange(BATCH_SIZE)] -= 1
        gradient /= BATCH_SIZE
        for index in reversed(range(len(matrices))):
            grad_values = np.einsum("nb,nb->n", seen[index][rows[index]], gradient[columns[index]])
            if index > 0:
                gradient = (matrices[index] @ gradient) * (seen[index] > 0)
            moments[index] = MOMENTUM * moments[index] + grad_values
            matrices[index].data -= RATE * moments[index]
        return loss

    return one_by_one(take)


VARIANTS = {function.__name__: function for function in (package, torch_masks, torch_csr, scipy_csr)}
# The module that each variant imports. Its import does not count as memory of the network.
LIBRARIES = {"package": "dctps_jax", "torch_masks": "torch", "torch_csr": "torch", "scipy_csr": "scipy.sparse"}


def measure(variant: str, density: float, steps: int) -> dict[str, Any]:
    """Return the seconds of an epoch, the memory that it added, and the losses of its first and last step."""
    importlib.import_module(LIBRARIES[variant])
    problem = make_problem(density)
    before = resident_megabytes()
    train = VARIANTS[variant](problem)
    # The package compiles a program for one step, and one for its calls.
    first = train(range(1))
    train(range(1, 1 + STEPS_PER_CALL))
    started = time.perf_counter()
    last = train(range(1 + STEPS_PER_CALL, 1 + STEPS_PER_CALL + steps))
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "megabytes": resident_megabytes() - before, "losses": [first, last]}


def resident_megabytes() -> float:
    """Return the megabytes that this process holds in memory (Linux only)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def in_a_process(variant: str, density: float, steps: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", variant, str(density), "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"masked_mlp.py: {variant} failed\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--densities", type=float, nargs="+", default=[0.1, 0.01, 0.001])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=500, help=f"of an epoch, a multiple of {STEPS_PER_CALL}")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--save", default="", help="write benchmarks/results/NAME.json")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.steps < 1 or arguments.steps % STEPS_PER_CALL:
        parser.error(f"--steps is {arguments.steps}, but must be a multiple of {STEPS_PER_CALL}")
    if arguments.measure:
        print(json.dumps(measure(arguments.measure[0], float(arguments.measure[1]), arguments.steps)))
        return
    from record import describe_run, save
    from tables import masked_mlp

    cases = []
    for density in arguments.densities:
        turns = [
            {name: in_a_process(name, density, arguments.steps) for name in arguments.variants}
            for _ in range(arguments.turns)
        ]
        for name in arguments.variants:
            seconds = min(turn[name]["seconds"] for turn in turns)
            cases.append({"variant": name, "density": density} | turns[0][name] | {"seconds": seconds})
        losses = np.array([case["losses"] for case in cases if case["density"] == density])
        if not np.all(np.abs(losses / losses[0] - 1) <= TOLERANCES):
            sys.exit(f"masked_mlp.py: the losses differ at density {density:g}: {losses.tolist()}")
    result = describe_run(arguments) | {"cases": cases}
    print(masked_mlp(cases))
    save(arguments.save, result)


if __name__ == "__main__":
    main()
