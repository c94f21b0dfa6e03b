"""Ship a run as one small file: ``python -m dctps_jax.export RUN --output FILE``.

The file is safetensors: the trained weights with their positions, α, BatchNorm and biases; no kernel, no optimiser. What it takes to build the
network again stands in its metadata. ``--stablehlo FILE`` writes the network as a program for CPU, CUDA and TPU, too.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from dctps_jax.data.batches import Normalization, normalize
from dctps_jax.errors import UserError
from dctps_jax.kernels import Mask, Support
from dctps_jax.layers import prunable_layers
from dctps_jax.npz import first_line
from dctps_jax.ops.target import portable
from dctps_jax.training.checkpoint import digest, flatten, read_arrays
from dctps_jax.training.setup import build_model
from dctps_jax.training.workdir import read_config, read_results, write_whole

FORMAT, FORMAT_VERSION = "dctps_jax", 1
SECTIONS = ("params", "batch_stats", "supports", "frozen")
PLATFORMS = ("cpu", "cuda", "tpu")


class Description(NamedTuple):
    """What an exported file says of its network."""

    config: dict[str, Any]
    class_names: tuple[str, ...]
    image_size: int
    normalization: Normalization
    step: int

    def prepare(self, images: jax.Array) -> jax.Array:
        """Return uint8 images ``[batch, size, size, 3]`` as the network takes them."""
        return normalize(images, self.normalization)


def export_run(run: Path, output: Path, checkpoint: str = "best") -> None:
    """Write a finished run's network, as its "best" or "latest" checkpoint holds it, to a safetensors file, whole or not at all.

    Raises :class:`~dctps_jax.errors.UserError` where the run is not finished, is of an older version, or has no sound checkpoint.
    """
    from safetensors.numpy import save

    config, results = read_config(run), read_results(run)
    if "data" not in results:
        raise UserError(
            f"{run / 'results.json'} does not say what the data were: it is of an older version, or of several seeds"
        )
    step, arrays = read_arrays(run / "checkpoints", checkpoint)
    tensors = {
        name.removeprefix("state/"): np.asarray(array, order="C")
        for name, array in arrays.items()
        if name.split("/")[1] in SECTIONS
    }
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "config": json.dumps(config),
        "data": json.dumps(results["data"]),
        "step": str(step),
        "digest": digest(tensors),
    }
    _write(output, save(tensors, metadata))


def describe_exported(file: Path | str) -> Description:
    """Return what an exported file says of its network; errors as :func:`load_exported`."""
    return _read(Path(file))[0]


def load_exported(file: Path | str) -> nnx.Module:
    """Return the network of an exported file, ready to classify: ``model(describe_exported(file).prepare(images))`` are logits.

    Its layers are compact. Raises :class:`~dctps_jax.errors.UserError` for a file that is missing, truncated, damaged, foreign or of a newer version.
    """
    return _build(Path(file), *_read(Path(file)))


def _build(file: Path, description: Description, tensors: dict[str, np.ndarray]) -> nnx.Module:
    config = ConfigDict(description.config)
    supports = {
        ".".join(name.split("/")[1:-1]): array for name, array in tensors.items() if name.startswith("supports/")
    }
    options = {"choose_support": lambda shapes: supports} if supports else {}
    model = build_model(config, len(description.class_names), description.image_size, **options)
    model.eval()
    graph, *parts = nnx.split(model, nnx.Param, nnx.BatchStat, (Mask, Support), ...)
    for section, part in zip(SECTIONS, parts, strict=True):
        leaves = flatten(nnx.to_pure_dict(part))
        found = {
            name.removeprefix(f"{section}/"): array for name, array in tensors.items() if name.startswith(f"{section}/")
        }
        if {name: leaf.shape for name, leaf in leaves.items()} != {name: array.shape for name, array in found.items()}:
            raise UserError(f"{file} does not hold the {section} of its own network; export the run again")
        values = jax.tree.unflatten(
            jax.tree.structure(nnx.to_pure_dict(part)), [jnp.asarray(found[name]) for name in leaves]
        )
        nnx.replace_by_pure_dict(part, values)
    return nnx.merge(graph, *parts)


def export_stablehlo(file: Path | str, output: Path) -> None:
    """Write an exported network as serialised StableHLO: uint8 images ``[batch, size, size, 3]`` of any batch → logits.

    One program for CPU, CUDA and TPU; ``jax.export.deserialize`` reads it.
    """
    from jax import export

    description, tensors = _read(Path(file))
    model = _build(Path(file), description, tensors)
    for layer in prunable_layers(model).values():
        layer.method = "autodiff"
    graph, state = nnx.split(model)

    @jax.jit
    def logits_of(images: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(description.prepare(images))

    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, description.image_size, description.image_size, 3), jnp.uint8)
    with portable():
        program = export.export(logits_of, platforms=PLATFORMS)(images)
    _write(output, bytes(program.serialize()))


def _read(file: Path) -> tuple[Description, dict[str, np.ndarray]]:
    from safetensors import safe_open

    if not file.is_file():
        raise UserError(f"{file} does not exist; write it with: python -m dctps_jax.export RUN --output {file}")
    try:
        with safe_open(file, framework="numpy") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no dict)
    except Exception as error:  # safetensors raises its own kind for a foreign or truncated file
        raise UserError(
            f"{file} is no safetensors file, or a truncated one ({first_line(error)}); export the run again"
        ) from error
    if metadata.get("format") != FORMAT:
        raise UserError(f"{file} is a safetensors file, but none of dctps_jax.export; give one that it wrote")
    if int(metadata["format_version"]) > FORMAT_VERSION:
        raise UserError(
            f"{file} was written by a newer dctps_jax (format {metadata['format_version']}, this one knows {FORMAT_VERSION}); "
            "update dctps_jax"
        )
    if digest(tensors) != metadata["digest"]:
        raise UserError(f"{file} is damaged: its digest does not match its content; export the run again")
    try:
        data = json.loads(metadata["data"])
        normalization = Normalization(tuple(data["mean"]), tuple(data["std"]))
        description = Description(
            json.loads(metadata["config"]),
            tuple(data["class_names"]),
            data["image_size"],
            normalization,
            int(metadata["step"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} is damaged: its metadata do not describe a network; export the run again") from error
    return description, tensors


def _write(output: Path, content: bytes) -> None:
    if not output.absolute().parent.is_dir():
        raise UserError(f"{output} cannot be written: {output.parent} is no directory; create it or name another one")
    if output.is_dir():
        raise UserError(f"{output} cannot be written: it is a directory; name a file")
    write_whole(output, content)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="directory of a finished run")
    parser.add_argument("--output", type=Path, required=True, help="file to write, e.g. model.safetensors")
    parser.add_argument(
        "--checkpoint", choices=("best", "latest"), default="best", help="best on validation, or the last"
    )
    parser.add_argument("--stablehlo", type=Path, help="file for the network as a program")
    arguments = parser.parse_args()
    try:
        export_run(arguments.run, arguments.output, arguments.checkpoint)
        print(f"written: {arguments.output}, {arguments.output.stat().st_size / 1000:,.1f} kB")
        if arguments.stablehlo:
            export_stablehlo(arguments.output, arguments.stablehlo)
            print(f"written: {arguments.stablehlo}, {arguments.stablehlo.stat().st_size / 1000:,.1f} kB")
    except UserError as error:
        sys.exit(f"export: {error}")


if __name__ == "__main__":
    main()
