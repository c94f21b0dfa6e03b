"""Runs as the figures and tables read them: out of their directories, or out of one file that holds many."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dctps_jax.errors import UserError
from dctps_jax.field import flat_fields
from dctps_jax.files import digest_of, parse_json, printable, read_file, write_whole
from dctps_jax.pruning import density_asked
from dctps_jax.reports.names import names_of_groups, names_of_places
from dctps_jax.reports.settings import Setting, has_effect
from dctps_jax.runs import seal
from dctps_jax.runs.checkpoint_files import NO_MATCH
from dctps_jax.runs.damage import DAMAGED
from dctps_jax.runs.fields import check_config_fields, check_object, check_results, check_row
from dctps_jax.runs.metrics import best_of, read_rows
from dctps_jax.runs.workdir import ADDED_FIELDS, free_fields, read_config, read_results


class Record(NamedTuple):
    """A run: its name, its config by dotted field, what it came to (None while it goes on) and its epochs."""

    name: str
    config: dict[str, Any]
    results: dict[str, Any] | None
    rows: list[dict[str, Any]]

    @property
    def setting(self) -> Setting:
        """Everything that may change a run's numbers but its seed: fields without effect are left out.

        Fields that were added since the run have the value that it trained with.
        """
        config = _hashable(ADDED_FIELDS) | self.config
        ignored = {"seed", "num_seeds", *free_fields(config)}
        return tuple(
            (field, value)
            for field, value in sorted(config.items())
            if field not in ignored and has_effect(field, config)
        )


def read_run(folder: Path | str, name: str | None = None) -> Record:
    """Return the run in ``folder``.

    Raises :class:`~dctps_jax.errors.UserError` where one of its files is missing or damaged, or is of another run than
    the others.
    """
    folder = Path(folder)
    results = read_results(folder) if (folder / "results.json").exists() else None
    config, rows = _hashable(read_config(folder)), read_rows(folder / "metrics.jsonl")
    if results is not None and not seal.is_sealed_as(results, "metrics.jsonl", digest_of(rows)):
        raise UserError(
            f"{folder / 'metrics.jsonl'} is not what the run left there; the command of the run, given again, writes "
            "it anew from the last checkpoint, or says what can be done"
        )
    record = Record(printable(name or str(folder)), config, results, rows)
    try:
        _check_together(record)
    except ValueError as error:
        raise UserError(f"{folder} holds files of different runs: {error}; restore them or leave it out") from error
    return record


def _check_together(record: Record) -> None:
    """Raise ``ValueError`` where config, results and epochs of a run contradict each other."""
    config, results, rows = record.config, record.results, record.rows
    num_epochs = config.get("num_epochs", len(rows))
    if len(rows) > num_epochs:
        raise ValueError(f"num_epochs is {num_epochs} in the config, and {len(rows)} epochs are recorded")
    if results is None:
        return
    asked = density_asked(config["pruning.method"], config["pruning.density"], config.get("pruning.rewind_epoch", -1))
    for field, found, expected in (
        ("seed", results.get("seed"), config.get("seed")),
        ("density_asked", results["density_asked"], asked),
        ("dtype", results.get("dtype"), config.get("model.dtype")),
    ):
        if field in results and found != expected and expected is not None:
            raise ValueError(f"{field} is {found} in the results and {expected} in the config")
    if rows and "seeds" not in results:
        if len(rows) < num_epochs:
            raise ValueError(f"it is finished, but only {len(rows)} of {num_epochs} epochs are recorded")
        best = best_of(rows)
        assert best is not None
        if (best["epoch"], best["val_accuracy"]) != (results["best_epoch"], results["best_val_accuracy"]):
            raise ValueError(
                f"the best validation accuracy is {results['best_val_accuracy']} after epoch {results['best_epoch']} "
                f"in the results, and {best['val_accuracy']} after epoch {best['epoch']} in the metrics"
            )


def read_records(source: Path | str) -> list[Record]:
    """Return all runs below a directory, or in a file that :func:`write_records` wrote, by name.

    The directory that holds the seeds of a run does not count as a run. Raises :class:`~dctps_jax.errors.UserError`
    where there is nothing.
    """
    source = Path(source)
    if source.is_file():
        records = _read_file(source)
    elif source.is_dir():
        # A run that lost its config is refused rather than left out.
        names = ("config.json", "metrics.jsonl", "results.json")
        folders = sorted({file.parent for name in names for file in source.rglob(name)})
        # What a run set aside, when it wrote a damaged file anew.
        folders = [folder for folder in folders if folder.name != DAMAGED]
        records = [read_run(folder, str(folder.relative_to(source))) for folder in folders]
        records = [record for record in records if record.config.get("num_seeds", 1) == 1]
    else:
        raise UserError(f"{source} does not exist; give a directory of runs, or a runs.jsonl")
    if not records:
        raise UserError(f"{source} holds no runs; give the directory that train.py or sweep.py wrote to")
    return records


def read_all(sources: Iterable[Path]) -> list[Record]:
    """Return the runs of several directories or files, by names that tell them apart."""
    found = [(source / record.name, record) for source in sources for record in read_records(source)]
    names = names_of_places([place for place, _ in found])
    return [record._replace(name=printable(name)) for name, (_, record) in zip(names, found, strict=True)]


def write_records(file: Path, records: Iterable[Record]) -> None:
    """Write the runs as one JSON object a line.

    Left out are the places of files and how layers were computed; a folder of images keeps its name.

    The first line says how many there are, and has a SHA-256 of the lines after it. Files of version 0.1.0 have no such
    line.
    """
    lines = []
    for record in records:
        free = free_fields(record.config)
        config = {field: value for field, value in record.config.items() if field not in free}
        if "data.dir" in config:
            config["data.dir"] = Path(config["data.dir"]).name
        results = record.results
        if results is not None:
            results = {field: value for field, value in results.items() if field != seal.FIELD}  # of whole files
        values = record._replace(config=config, results=results)._asdict()
        lines.append(json.dumps(values, separators=(",", ":")) + "\n")
    content = "".join(lines)
    head = {"runs": len(lines), "digest": hashlib.sha256(content.encode()).hexdigest()}
    write_whole(file, json.dumps(head, separators=(",", ":")) + "\n" + content)


def by_setting(records: Iterable[Record]) -> dict[Setting, list[Record]]:
    """Group the runs that differ in nothing but their seed."""
    groups: dict[Setting, list[Record]] = defaultdict(list)
    for record in records:
        groups[record.setting].append(record)
    return dict(groups)


def names_of_settings(groups: Mapping[Setting, Sequence[Record]]) -> dict[Setting, str]:
    """Return a name for each setting, that of its first run with the number of others."""
    return names_of_groups({setting: [record.name for record in members] for setting, members in groups.items()})


def first_of_each_seed(records: Iterable[Record]) -> tuple[list[Record], list[Record]]:
    """Return the first record of each seed of a setting, and the records that repeat it. Finished runs come first."""
    first: dict[tuple[Setting, Any], Record] = {}
    again = [
        record
        for record in sorted(records, key=lambda record: record.results is None)
        if first.setdefault((record.setting, record.config.get("seed")), record) is not record
    ]
    return list(first.values()), again


def _read_file(file: Path) -> list[Record]:
    records: list[Record] = []
    content, first = read_file(file), 1
    if content.startswith(b'{"runs":'):
        head, _, content = content.partition(b"\n")
        _check_head(file, head, content)
        first = 2
    for number, line in enumerate(content.splitlines(), first):
        try:
            records.append(_record(parse_json(line)))
        except ValueError as error:
            raise UserError(
                f"{file} is no file of runs: line {number}: {error}; give a directory of runs instead"
            ) from error
    return records


def _check_head(file: Path, head: bytes, content: bytes) -> None:
    """Raise :class:`~dctps_jax.errors.UserError` unless the lines after the first are those that were written."""
    try:
        is_sound = parse_json(head)["digest"] == hashlib.sha256(content).hexdigest()
    except (ValueError, KeyError, TypeError):
        is_sound = False
    if not is_sound:
        raise UserError(f"{file} is damaged: {NO_MATCH}; write the report again")


def _record(values: Any) -> Record:
    """Return the run that a line of a file holds; what is none is a ``ValueError``."""
    check_object(values)
    if (
        set(values) != set(Record._fields)
        or not isinstance(values["name"], str)
        or not isinstance(values["rows"], list)
    ):
        raise ValueError(f"it must have the fields {', '.join(Record._fields)}")
    check_config_fields(values["config"])
    if values["results"] is not None:
        check_results(values["results"])
    for number, row in enumerate(values["rows"]):
        check_row(row, values["rows"][:number])
    record = Record(**{**values, "name": printable(values["name"]), "config": _hashable(values["config"])})
    _check_together(record)
    return record


def _hashable(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config by dotted field, its lists as texts."""
    return {
        field: printable(str(value)) if isinstance(value, list | str) else value for field, value in flat_fields(config)
    }
