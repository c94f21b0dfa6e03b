"""What the program does with files: each operation with the files that it reads, and how a right end of it is known."""

import contextlib
import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open

from dctps_jax import data
from dctps_jax.errors import UserError
from dctps_jax.field import flat_fields
from dctps_jax.runs.checkpoint import Checkpoints, read_arrays
from dctps_jax.runs.workdir import free_fields
from tests.faults.damage import IMAGES
from tests.faults.material import Material
from tests.faults.programs import Ended, program
from tests.small_runs import restored

Value = dict[str, Any]


class Refused(Exception):
    """The operation said that it cannot do it, in `lines`."""

    def __init__(self, lines: list[str]):
        self.lines = lines


class Crashed(Exception):
    """The operation ended in a traceback."""


class Case(NamedTuple):
    """A damaged file or folder, below the sandbox, and how it was damaged."""

    path: Path
    kind: str


class Operation(NamedTuple):
    """`parts`: what lies in the sandbox. `targets`: patterns of what is damaged, with their names in the figures.

    `go` does it and returns what came of it, which must equal what comes of the sound files but for what `allowed`
    says.
    """

    parts: dict[str, str]
    targets: dict[str, str]
    go: Callable[[Material, Path], Value]
    allowed: Callable[[Case, Value, Value], str] = lambda case, found, expected: _differences(found, expected)


def _differences(found: Value, expected: Value) -> str:
    """Name what differs, "" where nothing does."""
    return ", ".join(name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name))


def _succeeded(ended: Ended) -> Ended:
    if ended.trace or "Traceback" in ended.err:
        raise Crashed(ended.trace or ended.err)
    if ended.code:
        raise Refused(ended.messages)
    if ended.messages:
        raise Crashed(f"it ended well, but says: {ended.err}")
    return ended


def _text(file: Path) -> Any:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        return repr(error)


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        return repr(error)


def _results(file: Path) -> Any:
    """The results of a run but for what depends on the machine."""
    results = _json(file)
    if not isinstance(results, dict):
        return results
    return {name: value for name, value in results.items() if not name.endswith(("_seconds", "_file_bytes", "digests"))}


def _rows(file: Path) -> Any:
    """The rows of a run but for the speed."""
    try:
        rows = [json.loads(line) for line in file.read_text().splitlines() if line]
        return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        return repr(error)


def _masks(file: Path) -> Any:
    try:
        with np.load(file) as archive:
            return {name: (archive[name].shape, archive[name].dtype.str, archive[name].tobytes()) for name in archive}
    except Exception as error:  # whatever a damaged file makes numpy raise
        return repr(error)


def _arrays(folder: Path, kind: str) -> Any:
    try:
        step, arrays = read_arrays(folder, kind)
        return step, {name: array.tobytes() for name, array in arrays.items()}
    except Exception as error:  # whatever a damaged checkpoint makes Orbax raise
        return repr(error)


# Runs.


def resume(material: Material, sandbox: Path) -> Value:
    """Go on with a run that was stopped, to its end."""
    ended = _succeeded(program("train.py", *material.command(sandbox / "run")))
    run = sandbox / "run"
    return {
        "went on": "going on from step" in ended.out,
        "rows": _rows(run / "metrics.jsonl"),
        "results": _results(run / "results.json"),
        "latest": _arrays(run / "checkpoints", "latest"),
        "best": _arrays(run / "checkpoints", "best"),
        "masks": _masks(run / "masks.npz"),
        "masks_initial": _masks(run / "masks_initial.npz"),
        "warned": "warning: " in ended.err,
        "stderr": ended.err,
    }


def resumed_right(case: Case, found: Value, expected: Value) -> str:
    warned = found["warned"]
    found, expected = (
        {name: part for name, part in value.items() if name not in ("stderr", "warned")} for value in (found, expected)
    )
    if "best" in case.path.parts and warned and found["results"]["test_accuracy_best"] is None:
        # The best checkpoint is lost; the program says so, and leaves out what only it knew.
        del found["best"], expected["best"]
        expected["results"] = expected["results"] | {"test_accuracy_best": None}
    return _differences(found, expected)


def again(material: Material, sandbox: Path) -> Value:
    """Start a finished run once more: it reports."""
    ended = _succeeded(program("train.py", *material.command(sandbox / "run")))
    run = sandbox / "run"
    files = {"results": _results(run / "results.json"), "rows": _rows(run / "metrics.jsonl")}
    return {
        "out": ended.out.splitlines()[-1].rpartition("is finished. ")[2],
        "masks": _masks(run / "masks.npz"),
        "masks_initial": _masks(run / "masks_initial.npz"),
        **files,
    }


def restore(material: Material, sandbox: Path) -> Value:
    """Read the newest sound checkpoint, as a run that goes on does: the older one where the newest is damaged."""
    folder = sandbox / "run/checkpoints"
    template = _template(material)
    config = json.loads((material.sound / "stopped/config.json").read_text())
    checkpoints = Checkpoints(folder, config)
    try:
        found = restored(checkpoints, template)
    finally:
        checkpoints.close()
    if found is None:
        return {"step": None}
    return {"step": found[0], "arrays": _hash_of(_leaves(found[1]))}


def restored_right(case: Case, found: Value, expected: Value) -> str:
    """Any checkpoint of the run, under its own step, will do, as long as it is the newest that nothing happened to."""
    known = expected["known"]
    if found["step"] is None:
        return "nothing is found" if case.path.name != "latest" and case.path.name != "checkpoints" else ""
    if known.get(found["step"]) != found["arrays"]:
        return f"step {found['step']} with other numbers"
    newest = max(known)
    if (
        found["step"] != newest
        and str(newest) not in case.path.parts
        and case.path.name not in ("latest", "checkpoints")
    ):
        return f"step {found['step']}, not {newest}"
    return ""


def _template(material: Material) -> Any:
    """The state of the sound run as nested dicts, with the names that checkpoints know its arrays by."""
    import jax

    _, arrays = read_arrays(material.sound / "stopped/checkpoints", "latest")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *folders, last = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=device)
    return tree


def _leaves(tree: Any, above: str = "") -> dict[str, np.ndarray]:
    if not isinstance(tree, Mapping):
        return {above: np.asarray(tree)}
    return {name: leaf for key, member in tree.items() for name, leaf in _leaves(member, f"{above}/{key}").items()}


def _hash_of(arrays: Mapping[str, np.ndarray]) -> str:
    sha = hashlib.sha256()
    for name in sorted(arrays):
        sha.update(
            f"{name} {arrays[name].dtype} {arrays[name].shape}".encode() + np.ascontiguousarray(arrays[name]).tobytes()
        )
    return sha.hexdigest()


def export(kind: str) -> Callable[[Material, Path], Value]:
    """Export the best or the latest checkpoint of a finished run."""

    def go(material: Material, sandbox: Path) -> Value:
        output = sandbox / "exported.safetensors"
        _succeeded(program("dctps_jax.export", sandbox / "run", "--output", output, "--checkpoint", kind))
        with safe_open(output, framework="numpy") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no dict)
            metadata = opened.metadata()
        config = dict(flat_fields(json.loads(metadata.pop("config"))))
        config = {field: value for field, value in config.items() if field not in free_fields(config)}
        del metadata["digest"]  # of the free fields, too
        return {"metadata": metadata, "config": config, "tensors": _hash_of(tensors)}

    return go


def predict(material: Material, sandbox: Path) -> Value:
    ended = _succeeded(program("predict.py", sandbox / "export/model.safetensors", sandbox / "export/image.png"))
    return {"out": ended.out}


def predicted_right(case: Case, found: Value, expected: Value) -> str:
    """An image has no checksum of all of its content: damaged, it may be another image."""
    return "" if case.path.suffix in IMAGES else _differences(found, expected)


# Tables and figures.


def report(material: Material, sandbox: Path) -> Value:
    ended = _succeeded(program("dctps_jax.reports.report", sandbox / "runs"))
    names = ("report.md", "report.csv", "runs.jsonl", "accuracy.svg", "curves.svg")
    return {"out": ended.out} | {name: _text(sandbox / "runs" / name) for name in names}


def reported_right(case: Case, found: Value, expected: Value) -> str:
    """A run without results is not finished: the report says that it left it out."""
    return "" if "Not finished, and left out" in found["report.md"] else _differences(found, expected)


def report_of_records(material: Material, sandbox: Path) -> Value:
    source, output = sandbox / "records/runs.jsonl", sandbox / "report"
    ended = _succeeded(program("dctps_jax.reports.report", source, "--output", output))
    return {"out": ended.out} | {name: _text(output / name) for name in ("report.csv", "accuracy.svg", "curves.svg")}


def curves(material: Material, sandbox: Path) -> Value:
    runs = [sandbox / "runs" / name for name in ("first", "second")]
    ended = _succeeded(program("dctps_jax.reports.curves", *runs, "--output", sandbox / "curves.png"))
    return {"out": ended.out, "figure": _text(sandbox / "curves.svg")}


def masks(material: Material, sandbox: Path) -> Value:
    runs = [sandbox / "runs" / name for name in ("first", "second")]
    ended = _succeeded(program("dctps_jax.reports.masks", *runs, "--output", sandbox / "masks.png"))
    return {"out": ended.out, "figure": _text(sandbox / "masks.svg")}


# Data.


def load(name: str) -> Callable[[Material, Path], Value]:
    def go(material: Material, sandbox: Path) -> Value:
        with _log() as log:
            dataset = data.load(
                name, dir=str(sandbox / "data"), cache_dir=str(sandbox / "data/.dctps_cache"), download=False
            )
        return {
            "train_images": [image.tobytes() for image in np.asarray(dataset.train_images)],
            "test_images": [image.tobytes() for image in np.asarray(dataset.test_images)],
            "train_labels": dataset.train_labels.tolist(),
            "test_labels": dataset.test_labels.tolist(),
            "class_names": dataset.class_names,
            "mean": (dataset.mean, dataset.std),
            "warned": bool(log.getvalue()),
        }

    return go


@contextlib.contextmanager
def _log() -> Iterator[io.StringIO]:
    text, logger = io.StringIO(), logging.getLogger("dctps_jax")
    handler = logging.StreamHandler(text)
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    try:
        yield text
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def loaded_right(case: Case, found: Value, expected: Value) -> str:
    """Equal; a warning may come with it."""
    return _differences(found | {"warned": False}, expected | {"warned": False})


def archive_right(case: Case, found: Value, expected: Value) -> str:
    """Equal, unless a sound archive of other content took its place: that may hold less than the official one."""
    others = ("foreign", "swap", "lose_member", "rename_member", "cut_member")
    return "" if case.kind in others else loaded_right(case, found, expected)


def plain_files_right(case: Case, found: Value, expected: Value) -> str:
    """Plain images, labels and names have no checksum: another content may be taken, but for this one file only."""
    different = loaded_right(case, found, expected)
    if not different:
        return ""
    counts = [len(value["train_labels"]) + len(value["test_labels"]) for value in (found, expected)]
    if case.path.suffix in IMAGES:
        if case.kind in ("remove", "dangling_link", "folder_instead"):
            return "" if counts[0] == counts[1] - 1 else different
        images = [value["train_images"] + value["test_images"] for value in (found, expected)]
        others = sum(one != other for one, other in zip(*images, strict=False))
        labels = loaded_right(
            case, found | {"train_images": 0, "test_images": 0}, expected | {"train_images": 0, "test_images": 0}
        )
        return "" if counts[0] == counts[1] and others <= 1 and not labels else different
    # Records, labels, names, folders: as many as there are.
    return "" if all(len(found[part]) > 0 for part in ("train_labels", "test_labels")) else different


def tfds_right(case: Case, found: Value, expected: Value) -> str:
    """The names of classes are lines without a checksum. The whole, or a file of images, may be another data set's."""
    if case.kind == "foreign" and (case.path.name in ("data", "cifar10", "3.0.2") or "array_record" in case.path.name):
        return ""
    are_other_names = case.path.name == "label.labels.txt" and case.kind in (
        "flip",
        "foreign",
        "other_digit",
        "swap_lines",
    )
    if are_other_names and len(found["class_names"]) == len(expected["class_names"]):
        found = found | {"class_names": expected["class_names"]}
    return loaded_right(case, found, expected)


RUN_FILES = {
    "run/config.json": "config.json",
    "run/data.json": "data.json",
    "run/metrics.jsonl": "metrics.jsonl",
    "run/masks.npz": "masks.npz",
    "run/masks_initial.npz": "masks.npz",
    "run/.lock": ".lock",
}
CHECKPOINTS = {"run/checkpoints": "checkpoint", "run/checkpoints/**/*": "checkpoint"}
RESULTS = {"run/results.json": "results.json"}
RUN_PARTS = {"data": "images", "cache": "cache"}
DECODED = {"data/.dctps_cache": "decoded copy", "data/.dctps_cache/**/*": "decoded copy"}
IMAGE_FILES = {"data/t*/*/*.*": "image", "data/t*/*": "image", "data": "image"}

OPERATIONS: dict[str, Operation] = {
    "resume": Operation(
        {"run": "stopped", **RUN_PARTS},
        {**RUN_FILES, **CHECKPOINTS, **IMAGE_FILES, "cache": "decoded copy", "cache/**/*": "decoded copy"},
        resume, resumed_right,
    ),
    "again": Operation(
        {"run": "finished", **RUN_PARTS}, {**RUN_FILES, **RESULTS, "run/checkpoints": "checkpoint"}, again
    ),
    "restore": Operation({"run": "stopped"}, CHECKPOINTS, restore, restored_right),
    "export_best": Operation(
        {"run": "finished"},
        {"run/config.json": "config.json", **RESULTS, "run/checkpoints/best/**/*": "checkpoint"},
        export("best"),
    ),
    "export_latest": Operation({"run": "finished"}, {"run/checkpoints/latest/**/*": "checkpoint"}, export("latest")),
    "predict": Operation(
        {"export": "export"}, {"export/*.safetensors": "export", "export/image.png": "image"}, predict, predicted_right
    ),
    "report": Operation(
        {"runs": "runs"},
        {f"runs/*/{name}": name for name in ("config.json", "metrics.jsonl", "results.json")},
        report, reported_right,
    ),
    "report_of_records": Operation({"records": "records"}, {"records/runs.jsonl": "runs.jsonl"}, report_of_records),
    "curves": Operation(
        {"runs": "runs"}, {"runs/*/config.json": "config.json", "runs/*/metrics.jsonl": "metrics.jsonl"}, curves
    ),
    "masks": Operation(
        {"runs": "runs"}, {"runs/*/masks.npz": "masks.npz", "runs/*/config.json": "config.json"}, masks
    ),
    "images": Operation({"data": "images"}, IMAGE_FILES, load("image_folder"), plain_files_right),
    "images_decoded": Operation(
        {"data": "images_decoded"}, DECODED, load("image_folder"), loaded_right
    ),
    "cifar_archive": Operation({"data": "cifar_archive"}, {"data/*": "archive"}, load("cifar10"), archive_right),
    "cifar_decoded": Operation(
        {"data": "cifar_archive_decoded"}, DECODED, load("cifar10"), loaded_right
    ),
    "cifar_orphan": Operation(
        {"data": "cifar_orphan"}, DECODED, load("cifar10"), loaded_right
    ),
    "cifar_folder": Operation({"data": "cifar_folder"}, {"data/**/*": "records"}, load("cifar10"), plain_files_right),
    "tiny_archive": Operation({"data": "tiny_archive"}, {"data/*": "archive"}, load("tiny_imagenet"), archive_right),
    "tiny_folder": Operation({"data": "tiny_folder"}, {"data/**/*": "image"}, load("tiny_imagenet"), plain_files_right),
    "tfds": Operation({"data": "tfds"}, {"data/**/*": "TFDS"}, load("cifar10"), tfds_right),
}  # fmt: skip


def known_checkpoints(material: Material, sandbox: Path) -> dict[int, str]:
    """The sound checkpoints of the stopped run: what each step holds."""
    known = {}
    while (restored := restore(material, sandbox))["step"] is not None:
        known[restored["step"]] = restored["arrays"]
        folder = sandbox / "run/checkpoints/latest" / str(restored["step"])
        import shutil

        shutil.rmtree(folder)
    return known


__all__ = ["OPERATIONS", "Case", "Crashed", "Operation", "Refused", "UserError", "Value", "known_checkpoints"]
