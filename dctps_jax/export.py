"""Ship a run as one small file: ``python -m dctps_jax.export RUN --output FILE``.

The file is safetensors: the trained weights with their positions, α, BatchNorm and biases, but no kernel and no
optimiser state. Its metadata say how to build the network again. ``--stablehlo FILE`` also writes the network as a
program for CPU, CUDA and TPU.
"""

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from dctps_jax.arguments import check_choice
from dctps_jax.command import command
from dctps_jax.errors import UserError
from dctps_jax.exported_file import (
    FORMAT,
    FORMAT_VERSION,
    Description,
    check_network_config,
    description_of,
    read_exported_file,
)
from dctps_jax.field import find_field
from dctps_jax.files import check_target, is_printable, write_whole
from dctps_jax.kernels import Mask, Support
from dctps_jax.ops.target import PORTABLE, tracing_for
from dctps_jax.runs.checkpoint import last_is_lost, read_arrays
from dctps_jax.runs.fields import check_data
from dctps_jax.runs.packing import flatten
from dctps_jax.runs.workdir import read_config, read_results
from dctps_jax.safetensors_file import write_checked
from dctps_jax.training.own_network import (
    build_own_network,
    change_of_program,
    change_of_shapes,
    describe_program,
)
from dctps_jax.training.sparse_model import build_model
from dctps_jax.user_functions import IMPORT_PATH, blaming, is_import_path

SECTIONS = ("params", "batch_stats", "supports", "frozen")
PLATFORMS = ("cpu", "cuda", "tpu")
# The setting that names the function of a user's own network, as messages call it.
OPTION = "--network"
CHECKPOINTS = ("best", "latest", "ema")


def export_run(run: Path | str, output: Path | str, checkpoint: str = "best", network: str | None = None) -> Path:
    """Write the network of a finished run to a safetensors file, whole or not at all; return the run's directory.

    Of several seeds, it exports the one that was best on validation. ``checkpoint`` is "best", "latest", or "ema": the
    averaged weights of the latest checkpoint. ``network`` is the import path of the function that built a network of
    the user's own. With it the network is built first, to check that it is still the one that was trained.

    Raises :class:`~dctps_jax.errors.UserError` for another name of a checkpoint, for a run that is not finished, is of
    an older version, or has no sound checkpoint, for a network that has changed, and if the file cannot be written.
    """
    run, output = Path(run), Path(output)
    check_target("--output", output)
    check_choice("checkpoint", checkpoint, CHECKPOINTS)
    if not is_printable(str(run.absolute())):
        raise UserError(f"{run} has a name that is no UTF-8; Orbax reads no checkpoints there, rename it")
    config, results = read_config(run), read_results(run)
    if "seeds" in results:
        run = best_seed(run)
        config, results = read_config(run), read_results(run)
    if "data" not in results:
        raise UserError(
            f"{run / 'results.json'} does not say what the data were: it is of an older version; train it again"
        )
    try:
        check_data(results["data"])
        check_network_config(config)
    except ValueError as error:
        raise UserError(f"{run} cannot be exported: {error}; restore its files or take another run") from error
    step, arrays = read_arrays(run / "checkpoints", "best" if checkpoint == "best" else "latest", config)
    if checkpoint != "best" and step != results.get("step", step):  # results of version 0.1.0 have none
        raise last_is_lost(run, step, results["step"])
    if checkpoint == "ema":
        prefix = "state/averages/"
        averages = {
            f"state/{name.removeprefix(prefix)}": array for name, array in arrays.items() if name.startswith(prefix)
        }
        if not averages:
            raise UserError(f"{run} keeps no averaged weights; train it with config.optimizer.ema_decay, e.g. 0.999")
        arrays |= averages
    tensors = {
        name.removeprefix("state/"): np.asarray(array)
        for name, array in arrays.items()
        if name.split("/")[1] in SECTIONS
    }
    metadata = {"config": json.dumps(config), "data": json.dumps(results["data"]), "step": str(step)}
    if "network" in results:
        metadata["network"] = json.dumps(results["network"])
    if network is not None:
        _build(run, description_of(metadata), tensors, network)
    write_checked(output, tensors, FORMAT, FORMAT_VERSION, metadata)
    return run


def best_seed(run: Path) -> Path:
    """Return the directory of the best seed on validation, below the directory of several seeds."""
    seeds = {folder: read_results(folder)["best_val_accuracy"] for folder in sorted(run.glob("seed_*"))}
    return max(seeds, key=lambda folder: seeds[folder])


def describe_exported(file: Path | str) -> Description:
    """Return the description in an exported file; it raises the errors of :func:`load_exported`."""
    return read_exported_file(Path(file))[0]


def load_exported(file: Path | str, network: str | None = None) -> nnx.Module:
    """Return the network of an exported file. Its logits are ``model(describe_exported(file).prepare(images))``.

    Its layers are compact. ``network`` is the import path of the function that built a network of the user's own. The
    file names that function, but a function that only the file names is never called.

    Raises :class:`~dctps_jax.errors.UserError` for a file that is missing, truncated, damaged, foreign or of a newer
    version, and for a ``network`` that computes something else than the network of the run. A file of format version 1
    gives a warning: only its weights can be verified.
    """
    return read_exported(file, network)[1]


def read_exported(file: Path | str, network: str | None = None) -> tuple[Description, nnx.Module]:
    """Return the results of :func:`describe_exported` and :func:`load_exported`, reading the file once."""
    description, tensors = read_exported_file(Path(file))
    return description, _build(Path(file), description, tensors, network)


def check_network_option(source: Path, named: str, network: str | None) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` if ``network`` is missing for a network of the user's own.

    ``named`` is the name of the network in ``source``, a file or a run. The function also raises if ``network`` is
    given for a network of the package.
    """
    if is_import_path(named) and network is None:
        raise UserError(
            f"{source} holds a network that {named} built, which is not a part of dctps_jax; if you know this "
            f"function, give it: --network {named} (in Python: network={named!r})"
        )
    if is_import_path(named) != (network is not None):
        raise UserError(f"--network is {network!r}, but {source} holds {named}, a network of dctps_jax; leave it out")
    if network is not None and not is_import_path(network):
        raise UserError(f"--network is {network!r}; it must be {IMPORT_PATH.words}")


def _build(file: Path, description: Description, tensors: dict[str, np.ndarray], network: str | None) -> nnx.Module:
    config: Any = ConfigDict(description.config)
    check_network_option(file, config.model.name, network)
    supports = {
        ".".join(name.split("/")[1:-1]): array for name, array in tensors.items() if name.startswith("supports/")
    }
    of_images = len(description.class_names), description.image_size, description.shape[2]
    if network is not None:
        config.model.name = network
        if description.network is not None:
            now = describe_program(config, *of_images, field=OPTION)
            _refuse_change(file, network, change_of_program(description.network, now))
        model = build_own_network(config, *of_images, supports, field=OPTION)
    else:
        try:
            model = build_model(config, *of_images, supports or None)
        except UserError as error:
            raise UserError(
                f"{file} does not hold the network that it describes ({error}); export the run again"
            ) from error
    model.eval()
    graph, *parts, random, frozen = nnx.split(model, nnx.Param, nnx.BatchStat, (Mask, Support), nnx.RngState, ...)
    parts.append(frozen)
    for section, part in zip(SECTIONS, parts, strict=True):
        leaves = flatten(nnx.to_pure_dict(part))
        found = {
            name.removeprefix(f"{section}/"): array for name, array in tensors.items() if name.startswith(f"{section}/")
        }
        shapes, shapes_now = ({name: array.shape for name, array in arrays.items()} for arrays in (found, leaves))
        if network is not None:
            _refuse_change(file, network, change_of_shapes(shapes, shapes_now))
        elif shapes != shapes_now:
            raise UserError(f"{file} does not hold the {section} of its own network; export the run again")
        values = jax.tree.unflatten(
            jax.tree.structure(nnx.to_pure_dict(part)), [jnp.asarray(found[name]) for name in leaves]
        )
        nnx.replace_by_pure_dict(part, values)
    return nnx.merge(graph, *parts, random)


def _refuse_change(file: Path, network: str, change: str | None) -> None:
    if change is not None:
        raise UserError(
            f"{file} holds another network than {network} builds: that one {change}; put back the code that the run "
            "was trained with, or train and export a new run"
        )


def export_stablehlo(file: Path | str, output: Path | str, network: str | None = None) -> None:
    """Write an exported network as serialised StableHLO: any number of uint8 images → logits in float32.

    One program serves CPU, CUDA and TPU; ``jax.export.deserialize`` reads it. Raises the errors of
    :func:`load_exported`, and :class:`~dctps_jax.errors.UserError` for a network of the user's own that only takes
    batches of a known size.
    """
    from jax import export

    output = Path(output)
    check_target("--stablehlo", output)
    description, model = read_exported(file, network)
    graph, state = nnx.split(model)

    @jax.jit
    def logits_of(images: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(description.prepare(images)).astype(jnp.float32)

    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *description.shape), jnp.uint8)
    blamed: Any = contextlib.nullcontext()
    if network is not None:
        fault = "takes no batch whose size is not known; give it sizes as x.shape has them, not as len(x)"
        blamed = blaming(f"{OPTION} is {network!r}, which {fault}", network)
    with blamed, tracing_for(PORTABLE):
        program = export.export(logits_of, platforms=PLATFORMS)(images)
    write_whole(output, bytes(program.serialize()))


@command("export")
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="directory of a finished run")
    parser.add_argument("--output", type=Path, required=True, help="file to write, e.g. model.safetensors")
    parser.add_argument(
        "--checkpoint", choices=CHECKPOINTS, default="best", help="best on validation, last, or averages"
    )
    parser.add_argument(
        "--network", help="function that built a network of your own; --stablehlo and a check of its code call it"
    )
    parser.add_argument("--stablehlo", type=Path, help="file for the network as a program")
    arguments = parser.parse_args()
    if arguments.stablehlo:
        check_target("--stablehlo", arguments.stablehlo)
        if arguments.stablehlo.absolute() == arguments.output.absolute():
            raise UserError(f"--output and --stablehlo are both {arguments.output}; name two files")
    if arguments.stablehlo or arguments.network is not None:
        name, _ = find_field(read_config(arguments.run), "model.name")
        check_network_option(arguments.run, name, arguments.network)
    run = export_run(arguments.run, arguments.output, arguments.checkpoint, arguments.network)
    if run != arguments.run:
        print(f"{run} was the best of its seeds on validation")
    dtype = describe_exported(arguments.output).dtype
    computed = f", computed in {dtype}" if dtype else ""
    print(f"written: {arguments.output}, {arguments.output.stat().st_size / 1000:,.1f} kB{computed}")
    if arguments.stablehlo:
        export_stablehlo(arguments.output, arguments.stablehlo, arguments.network)
        print(f"written: {arguments.stablehlo}, {arguments.stablehlo.stat().st_size / 1000:,.1f} kB")


if __name__ == "__main__":
    main()
