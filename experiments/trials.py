"""Train with one change at a time, to see what helps: ``python -m experiments.trials IMAGES FILE``.

    python -m experiments.trials cifar10 lenet.jsonl --network lenet --epochs 15 --trials "rate of S × 3"
    python -m experiments.trials --table lenet.jsonl
    python -m experiments.trials --draw lenet.jsonl

The first command trains a network in the ways of ``TRIALS``, at each density and with each seed, by the protocol of the
paper (Adam of 0.001, L2 of 5e-4, batches of 128, crops and flips, positions by EPL), on CIFAR-10 or on an image folder.
All 21 ways take four hours on two CPU cores. The command adds a line to FILE for each run, and leaves out the runs that
FILE has already. So the same command goes on where it stopped. ``--shard 0 2`` and ``--shard 1 2`` share the runs
between two processes. All runs split training and validation images by seed 0. The second command prints the table. The
third draws the accuracies by epoch and writes the figure beside the file.
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dctps_jax import compiler_options, data, pruning
from dctps_jax.data import batches
from dctps_jax.models import create_model, prunable_layers
from dctps_jax.offsets import Offset
from dctps_jax.seeds import stream
from experiments.offsets import DELTA, ORTHOGONAL

BATCH_SIZE, RATE, L2 = 128, 1e-3, 5e-4


class Trial(NamedTuple):
    """What a run changes. All rates are factors of the learning rate."""

    offset: str | Offset | None = "dct"
    alpha: float = 1.0
    by_variance: bool = False  # α so that the kernel has the mean square of Kaiming's initial kernels
    alpha_rate: float = 1.0
    sparse_rate: float = 1.0
    other_rate: float = 1.0
    warm_up: float = 0.0  # epochs
    cosine: bool = False
    logits: float = 1.0  # a factor of them
    signs: float = 0.0  # S starts at random signs times this


TRIALS: dict[str, Trial] = {
    "as in the paper": Trial(),
    "α starts at 0.5": Trial(alpha=0.5),
    "α starts at 0.25": Trial(alpha=0.25),
    "α by Kaiming's variance": Trial(by_variance=True),
    "α stays": Trial(alpha_rate=0.0),
    "rate of α × 10": Trial(alpha_rate=10.0),
    "S stays": Trial(sparse_rate=0.0),
    "rate of S × 3": Trial(sparse_rate=3.0),
    "rate of S × 10": Trial(sparse_rate=10.0),
    "warm-up of 1 epoch": Trial(warm_up=1.0),
    "cosine": Trial(cosine=True),
    "logits × 0.1": Trial(logits=0.1),
    "S starts at ±0.1": Trial(signs=0.1),
    "all rates × 3": Trial(alpha_rate=3.0, sparse_rate=3.0, other_rate=3.0),
    "all rates × 10": Trial(alpha_rate=10.0, sparse_rate=10.0, other_rate=10.0),
    "no offset": Trial(offset=None),
    "no offset, rate of S × 3": Trial(offset=None, sparse_rate=3.0),
    "no offset, rate of S × 10": Trial(offset=None, sparse_rate=10.0),
    "Hadamard offset": Trial(offset="hadamard"),
    "random orthogonal offset": Trial(offset=ORTHOGONAL),
    "delta offset": Trial(offset=DELTA),
}


class Images(NamedTuple):
    train: batches.Examples
    validation: batches.Examples
    test: batches.Examples
    normalization: batches.Normalization


def load_dataset(images: str) -> data.Dataset:
    """Return CIFAR-10 for "cifar10", and the image folder of any other name."""
    return data.load("cifar10") if images == "cifar10" else data.load("image_folder", dir=images, image_size=32)


def load_images(images: str) -> Images:
    dataset = load_dataset(images)
    train, validation = (
        batches.Examples(np.asarray(dataset.train_images)[rows], dataset.train_labels[rows])
        for rows in batches.split_training(len(dataset.train_labels), 0.9, 0)
    )
    test = batches.Examples(np.asarray(dataset.test_images), dataset.test_labels)
    normalization = batches.normalization_of(dataset, train)
    train, validation, test = (batches.Examples(*map(jnp.asarray, part)) for part in (train, validation, test))
    return Images(train, validation, test, normalization)


def make_model(network: str, trial: Trial, density: float, seed: int) -> Any:
    name, *width = network.split(":")
    options: dict[str, Any] = {"width": int(width[0])} if width else {}
    model: Any = create_model(name, num_classes=10, offset=trial.offset, rngs=nnx.Rngs(seed), **options)
    layers: Any = prunable_layers(model)
    for layer in layers.values() if trial.offset else ():
        layer.alpha[...] = jnp.full_like(layer.alpha[...], trial.alpha)
        if trial.by_variance:
            norm = jnp.linalg.norm(layer.effective_kernel())
            layer.alpha[...] = layer.alpha[...] * math.sqrt(2 * layer.kernel_shape[-1]) / norm
    shapes = {path: layer.kernel_shape for path, layer in layers.items()}
    masks = pruning.random_masks(stream(seed, "masks"), shapes, pruning.allocate(shapes, density, "epl"))
    pruning.apply_masks(model, masks, form="compact")
    rng = np.random.default_rng(seed)
    for layer in layers.values() if trial.signs else ():
        layer.kernel[...] = jnp.asarray(trial.signs * rng.choice((-1.0, 1.0), layer.kernel[...].shape), jnp.float32)
    return model


def make_optimizer(trial: Trial, params: Any, steps_per_epoch: int, epochs: int) -> optax.GradientTransformation:
    steps, warm_up = steps_per_epoch * epochs, round(trial.warm_up * steps_per_epoch)
    main = optax.cosine_decay_schedule(RATE, steps - warm_up) if trial.cosine else optax.constant_schedule(RATE)
    schedule = optax.join_schedules([optax.linear_schedule(0, RATE, warm_up), main], [warm_up]) if warm_up else main

    def label(path: Any, _: Any) -> str:
        names = {str(getattr(entry, "key", "")) for entry in path}
        return "alpha" if "alpha" in names else "sparse" if "kernel" in names else "other"

    rates = {"alpha": trial.alpha_rate, "sparse": trial.sparse_rate, "other": trial.other_rate}
    labels = jax.tree_util.tree_map_with_path(label, params)
    scaled = optax.multi_transform({name: optax.scale(rate) for name, rate in rates.items()}, labels)
    return optax.chain(
        optax.add_decayed_weights(L2), optax.scale_by_adam(), scaled, optax.scale_by_learning_rate(schedule)
    )


def train(network: str, trial: Trial, density: float, seed: int, epochs: int, images: Images) -> dict[str, Any]:
    """Return the accuracies of a run: on validation after each epoch, and on the test images at the end."""
    model = make_model(network, trial, density, seed)
    model.train()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    model.eval()
    test_graph = nnx.graphdef(model)
    params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)
    steps_per_epoch = len(images.train.labels) // BATCH_SIZE
    optimizer = make_optimizer(trial, params, steps_per_epoch, epochs)
    state, key = optimizer.init(params), jax.random.key(seed)

    @partial(jax.jit, donate_argnums=(0, 1, 2), compiler_options=compiler_options())
    def step(params: Any, rest: Any, state: Any, order: jax.Array, number: jax.Array) -> Any:
        batch, labels = batches.training_batch(
            images.train,
            order,
            number,
            batch_size=BATCH_SIZE,
            steps_per_epoch=steps_per_epoch,
            normalization=images.normalization,
            augmented=True,
            key=key,
        )

        def loss_of(params: Any) -> Any:
            model: Any = nnx.merge(graph, params, rest)
            logits = trial.logits * model(batch)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            return loss, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))

        (loss, rest), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), rest, state, loss

    @partial(jax.jit, compiler_options=compiler_options())
    def right(params: Any, rest: Any, pixels: jax.Array, labels: jax.Array) -> jax.Array:
        model: Any = nnx.merge(test_graph, params, rest)
        return jnp.sum(jnp.argmax(model(batches.normalize(pixels, images.normalization)), -1) == labels)

    def accuracy(examples: batches.Examples) -> float:
        size = 1000
        starts = range(0, len(examples.labels), size)
        parts = [(examples.images[start : start + size], examples.labels[start : start + size]) for start in starts]
        return sum(int(right(params, rest, *part)) for part in parts) / len(examples.labels)

    losses, validation, begin = [], [], time.time()
    for epoch in range(epochs):
        order, total = batches.epoch_permutation(epoch, key=key, count=len(images.train.labels)), 0.0
        for number in range(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch):
            params, rest, state, loss = step(params, rest, state, order, jnp.int32(number))
            total += loss
        losses.append(float(total) / steps_per_epoch)
        validation.append(accuracy(images.validation))
    return {
        "train_loss": losses,
        "val_accuracy": validation,
        "test_accuracy": accuracy(images.test),
        "seconds": round(time.time() - begin),
    }


def runs(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield what distinguishes each run: seeds outermost, so that a file that is not finished holds whole seeds."""
    names = [name for name in TRIALS if not arguments.trials or name in arguments.trials]
    for seed, density, name in itertools.product(arguments.seeds, arguments.densities, names):
        yield {
            "network": arguments.network,
            "epochs": arguments.epochs,
            "density": density,
            "trial": name,
            "seed": seed,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="?", help="cifar10, or an image folder, as for data.name=image_folder")
    parser.add_argument("file", nargs="?", type=Path, help="JSON lines of the runs")
    parser.add_argument("--network", default="lenet", help="a network, or a ResNet with its width: resnet18:8")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.01, 0.001])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--trials", nargs="+", choices=TRIALS, default=[], metavar="NAME", help="all by default")
    parser.add_argument("--shard", type=int, nargs=2, default=[0, 1], metavar=("NUMBER", "COUNT"))
    parser.add_argument("--table", type=Path, help="print the table of these JSON lines, and train nothing")
    parser.add_argument("--draw", type=Path, help="draw these JSON lines, and train nothing")
    arguments = parser.parse_args()
    if arguments.table or arguments.draw:
        from experiments import trial_figures

        if arguments.table:
            print(trial_figures.table(trial_figures.read(arguments.table)))
        else:
            trial_figures.draw(trial_figures.read(arguments.draw), arguments.draw.with_suffix(".png"))
        return
    if not arguments.images or not arguments.file:
        parser.error("IMAGES and FILE are needed")
    images = load_images(arguments.images)
    arguments.file.parent.mkdir(parents=True, exist_ok=True)
    number, count = arguments.shard
    for run in itertools.islice(runs(arguments), number, None, count):
        text = arguments.file.read_text() if arguments.file.exists() else ""
        if any(run.items() <= json.loads(line).items() for line in text.splitlines()):
            continue
        trained = train(run["network"], TRIALS[run["trial"]], run["density"], run["seed"], run["epochs"], images)
        with arguments.file.open("a") as file:
            file.write(json.dumps(run | trained) + "\n")
        print(run, f"{100 * trained['test_accuracy']:.1f} % in {trained['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
