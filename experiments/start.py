"""Look at networks before their first step and while they begin to learn.

    python -m experiments.start cifar10 --save start.json
    python -m experiments.start --draw start.json

The first command measures, on CIFAR-10 or on an image folder, as for ``data.name=image_folder``. The second draws the
measured figures and writes them beside the file. Both run in a checkout of the project.

Before the first step, it measures networks of several depths and widths, with the DCT offset and without. With the
offset S is zero. Without it all weights of the dense network are there:

- ``loss``: the mean cross-entropy of 256 training images, with the statistics of the batch in BatchNorm. A network
  that knows nothing has ln(classes);
- ``class 0``: the share of the images that the network takes for class 0, and the mean of the ten ``logits``;
- ``likeness`` of the inputs of each layer: the mean cosine between two images. At 1 all images look alike to the layer.

While a network learns, by Adam (0.001) with L2 of 5e-4, in batches of 128 without augmentation, it measures at steps 0,
1, 2, 4, …: the loss and accuracy of 512 training images; for each layer the norms of α·D and S, and of the loss's
gradients for α and S; the norm of the gradient of the scales of all BatchNorms together.
"""

import argparse
import datetime
import json
import math
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dctps_jax import DCTpSConv, DCTpSLinear, compiler_options, pruning
from dctps_jax.models import create_model, prunable_layers
from experiments import trials

# Network and options, in the order of the figures.
AT_START: list[tuple[str, dict[str, Any]]] = [
    ("lenet", {}),
    *((f"vgg{depth}", {}) for depth in (11, 13, 16, 19)),
    *(("resnet18", {"width": width}) for width in (8, 16, 32, 64)),
    ("resnet50", {"width": 16}),
    ("resnet110", {}),
    ("fixup_resnet20", {}),
]
# Network, density, offset, steps.
EARLY: list[tuple[str, float, str | None, int]] = [
    ("lenet", 0.01, "dct", 4096),
    ("lenet", 0.001, "dct", 4096),
    ("lenet", 0.01, None, 4096),
    ("vgg11", 0.001, "dct", 512),
    ("vgg11", 0.001, None, 512),
]
BATCH_SIZE, NUM_IMAGES = 128, 512

Batch = tuple[jax.Array, jax.Array]


def load_images(directory: str) -> tuple[np.ndarray, np.ndarray]:
    """Return training images, normalised, and labels."""
    dataset = trials.load_dataset(directory)
    order = np.random.default_rng(0).permutation(len(dataset.train_labels))
    images = np.asarray(dataset.train_images)[order].astype(np.float32) / 255
    mean, std = images.mean((0, 1, 2)), images.std((0, 1, 2))
    return (images - mean) / std, np.asarray(dataset.train_labels)[order]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def likeness(inputs: jax.Array) -> float:
    """Return the mean cosine between the inputs of two images."""
    rows = inputs.reshape(len(inputs), -1)
    rows = rows / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    count = len(rows)
    return float((jnp.sum(jnp.sum(rows, 0) ** 2) - count) / (count * (count - 1)))


def at_start(network: str, options: dict[str, Any], offset: str | None, batch: Batch) -> dict[str, Any]:
    """Return the loss of a new network and how alike the inputs of its layers are."""
    model: Any = create_model(network, num_classes=10, offset=offset, rngs=nnx.Rngs(0), **options)
    model.train()
    paths = {id(layer): path for path, layer in prunable_layers(model).items()}
    alike: dict[str, float] = {}

    def recording(original: Any) -> Any:
        def call(layer: Any, inputs: jax.Array, *rest: Any) -> jax.Array:
            if id(layer) in paths:
                alike[paths[id(layer)]] = likeness(inputs)
            return original(layer, inputs, *rest)

        return call

    conv, linear = recording(DCTpSConv.__call__), recording(DCTpSLinear.__call__)
    with mock.patch.object(DCTpSConv, "__call__", conv), mock.patch.object(DCTpSLinear, "__call__", linear):
        logits = model(batch[0])
    return {
        "network": network,
        "options": options,
        "offset": offset,
        "loss": float(cross_entropy(logits, batch[1])),
        "class 0": float(jnp.mean(jnp.argmax(logits, -1) == 0)),
        "logits": np.asarray(logits.mean(0), float).round(3).tolist(),
        "likeness": alike,
    }


def norms_of(layers: dict[str, Any], gradients: Any) -> list[dict[str, float]]:
    """Return for each layer the norms of α·D and S, and of their gradients, from a model that holds the gradients."""
    rows = []
    for path, layer in layers.items():
        other = gradients[path]
        row = {"S": jnp.linalg.norm(layer.kernel[...]), "gradient of S": jnp.linalg.norm(other.kernel[...])}
        if layer.alpha is not None:
            row["alpha D"] = jnp.linalg.norm(layer.fixed_part())
            row["gradient of alpha"] = jnp.abs(other.alpha[...]).sum()
        rows.append({name: float(value) for name, value in row.items()})
    return rows


def steps_to_look_at(steps: int) -> Iterator[int]:
    yield 0
    yield from (2**power for power in range(int(math.log2(steps)) + 1))


def early(
    network: str, density: float, offset: str | None, steps: int, images: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """Train a network for some steps and return the figures after 0, 1, 2, 4, … of them."""
    model: Any = create_model(network, num_classes=10, offset=offset, rngs=nnx.Rngs(0))
    shapes = {path: layer.kernel_shape for path, layer in prunable_layers(model).items()}
    masks = pruning.random_masks(jax.random.key(0), shapes, pruning.allocate(shapes, density, "epl"))
    pruning.apply_masks(model, masks, form="compact")
    model.train()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)
    optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.adam(1e-3))
    state = optimizer.init(params)

    def loss_of(params: Any, rest: Any, images: jax.Array, labels: jax.Array) -> Any:
        model: Any = nnx.merge(graph, params, rest)
        logits = model(images)
        return cross_entropy(logits, labels), (logits, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param))))

    def step(params: Any, rest: Any, state: Any, images: jax.Array, labels: jax.Array) -> Any:
        gradients, (_, rest) = jax.grad(loss_of, has_aux=True)(params, rest, images, labels)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), rest, state

    step = jax.jit(step, compiler_options=compiler_options())
    look = jax.jit(jax.value_and_grad(loss_of, has_aux=True), compiler_options=compiler_options())
    seen, seen_labels = jnp.asarray(images[:NUM_IMAGES]), jnp.asarray(labels[:NUM_IMAGES])
    rng, wanted, rows = np.random.default_rng(0), set(steps_to_look_at(steps)), []
    for number in range(steps + 1):
        if number in wanted:
            (loss, (logits, _)), gradients = look(params, rest, seen, seen_labels)
            layers = prunable_layers(nnx.merge(graph, params, rest))
            gradient_layers = prunable_layers(nnx.merge(graph, gradients, rest))
            leaves = jax.tree_util.tree_leaves_with_path(gradients)
            norms = [jnp.sum(leaf**2) for path, leaf in leaves if path[-1].key == "scale"]
            rows.append(
                {
                    "step": number,
                    "loss": float(loss),
                    "accuracy": float(jnp.mean(jnp.argmax(logits, -1) == seen_labels)),
                    "layers": norms_of(layers, gradient_layers),
                    "gradient of BatchNorm": math.sqrt(float(sum(norms))) if norms else None,
                }
            )
        chosen = rng.integers(0, len(images), BATCH_SIZE)
        params, rest, state = step(params, rest, state, jnp.asarray(images[chosen]), jnp.asarray(labels[chosen]))
    return {"network": network, "density": density, "offset": offset, "paths": list(shapes), "rows": rows}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    images, labels = load_images(arguments.images)
    batch = jnp.asarray(images[:256]), jnp.asarray(labels[:256])
    start = []
    for network, options in AT_START:
        for offset in ("dct", None):
            start.append(at_start(network, options, offset, batch))
            print(network, options, offset, f"loss {start[-1]['loss']:.2f}", flush=True)
    learning = []
    for case in EARLY:
        learning.append(early(*case, images, labels))
        print(*case, f"loss {learning[-1]['rows'][-1]['loss']:.2f}", flush=True)
    return {
        "what": "Networks before their first step, and while they begin to learn (experiments/start.py)",
        "images": "cifar10" if arguments.images == "cifar10" else "an image folder",
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
        "date": datetime.date.today().isoformat(),
        "at start": start,
        "early": learning,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="?", help="cifar10, or an image folder")
    parser.add_argument("--save", type=Path, help="write what was measured to this JSON file")
    parser.add_argument("--draw", type=Path, help="draw what this file holds, and measure nothing")
    arguments = parser.parse_args()
    if arguments.draw:
        from experiments import start_figures

        start_figures.draw(json.loads(arguments.draw.read_text()), arguments.draw.parent)
        return
    if not arguments.images:
        parser.error("say on which images: cifar10, or an image folder")
    found = measure(arguments)
    if arguments.save:
        arguments.save.parent.mkdir(parents=True, exist_ok=True)
        arguments.save.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
