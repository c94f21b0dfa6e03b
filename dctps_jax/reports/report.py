"""Tables and figures of many runs: ``python -m dctps_jax.reports.report DIR [--output FOLDER]``.

DIR is a directory that ``sweep.py`` or ``train.py`` wrote to, or a ``runs.jsonl`` of an earlier report. The report
writes:

- ``report.md`` and ``report.csv``: accuracies, trainable parameters, bytes and operations, a line a setting;
- ``accuracy``, as PNG and SVG: test accuracy against the share of weights that are trained, as in the paper;
- ``curves``, likewise: validation accuracy by epoch;
- ``runs.jsonl``: all data that was read, in one file.
"""

import argparse
import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dctps_jax.command import command
from dctps_jax.errors import UserError
from dctps_jax.files import write_whole
from dctps_jax.reports.accuracy import draw_accuracy
from dctps_jax.reports.costs import costs_of
from dctps_jax.reports.curves import draw_curves
from dctps_jax.reports.figures import figure_files
from dctps_jax.reports.records import (
    Record,
    by_setting,
    first_of_each_seed,
    names_of_settings,
    read_records,
    write_records,
)
from dctps_jax.reports.settings import MAX_FIELDS_IN_LABEL, Setting, differing, method_name, title_of, values_of
from dctps_jax.runs.metrics import mean_and_std

Line = dict[str, Any]


def summary(records: Sequence[Record]) -> list[Line]:
    """Return a line for each setting of the finished runs.

    A line has means and sample standard deviations over the seeds, and the costs of the runs.
    """
    groups = by_setting([record for record in records if record.results is not None])
    fields, names = differing(list(groups)), names_of_settings(groups)
    lines = [_line(setting, members, fields) | {"runs": names[setting]} for setting, members in groups.items()]
    return sorted(lines, key=lambda line: (line["method"], line["offset"] == "none", -line["density_kept"]))


def _line(setting: Setting, members: Sequence[Record], fields: Sequence[str]) -> Line:
    values = dict(setting)
    results = [record.results for record in members if record.results is not None]
    first = results[0]
    line: Line = {
        "method": method_name(setting),
        "offset": values["model.offset"] or "none",
        "fields": {field: "" for field in fields} | values_of(setting, fields),
        "density_asked": first["density_asked"],
        "density_kept": statistics.fmean(result["density"] for result in results),
        "seeds": len(results),
        "layers": len(first.get("layer_densities", ())),
        "empty_layers": max(list(result.get("layer_densities", {}).values()).count(0) for result in results),
    }
    for name in ("test_accuracy_best", "test_accuracy_final"):
        accuracies = [result[name] for result in results if result[name] is not None]
        # A mean over some of the seeds would be taken for one over all.
        line[name], line[f"{name}_std"] = mean_and_std(accuracies) if len(accuracies) == len(results) else (None, None)
    line["trainable_parameters"] = round(statistics.fmean(result["trainable_parameters"] for result in results))
    line |= costs_of(members[0].config, first)
    rows = [row for record in members for row in record.rows]
    speeds = [row["images_per_second"] for row in rows if row["images_per_second"] is not None]
    line["images_per_second"] = statistics.median(speeds) if speeds else None
    return line


def markdown(lines: Sequence[Line], records: Sequence[Record], again: Sequence[Record] = ()) -> str:
    """Return the report's text; ``again`` are runs whose seed and setting ``records`` have already."""
    extra = list(lines[0]["fields"])
    has_names = len(extra) > MAX_FIELDS_IN_LABEL  # as the figures have
    has_empty = any(line["empty_layers"] for line in lines)
    head = [
        *["runs"] * has_names,
        "method",
        "offset",
        *extra,
        "asked",
        "kept",
        *["empty layers"] * has_empty,
        "seeds",
        "test accuracy, best epoch",
        "last epoch",
        "trainable",
        "parameters + optimiser",
        "checkpoint",
        "inference, dense",
        "sparse",
        "training step, dense",
        "sparse",
        "images/s",
    ]
    num_texts = head.index("asked")
    texts = [f"| {' | '.join(head)} |", f"|{' --- |' * num_texts}{' ---: |' * (len(head) - num_texts)}"]
    for line in lines:
        cells = [
            *[line["runs"].replace("|", r"\|")] * has_names,
            line["method"],
            line["offset"],
            *(str(value) for value in line["fields"].values()),
            _percent(line["density_asked"]),
            _percent(line["density_kept"]),
            *[f"{line['empty_layers']} of {line['layers']}" if line["empty_layers"] else ""] * has_empty,
            str(line["seeds"]),
            _accuracy(line, "test_accuracy_best"),
            _accuracy(line, "test_accuracy_final"),
            f"{line['trainable_parameters']:,}",
            _scaled(line["state_bytes"], "B"),
            _scaled(line["checkpoint_bytes"], "B"),
            _scaled(line["inference_of_an_image_flops_dense"], ""),
            _scaled(line["inference_of_an_image_flops_sparse"], ""),
            _scaled(line["training_step_flops_dense"], ""),
            _scaled(line["training_step_flops_sparse"], ""),
            "" if line["images_per_second"] is None else f"{line['images_per_second']:,.0f}",
        ]
        texts.append(f"| {' | '.join(cells)} |")
    unfinished = [record.name for record in records if record.results is None]
    dtypes = {result["dtype"] for record in records if (result := record.results) and "dtype" in result}
    notes = [
        "- Accuracies are means ± sample standard deviations over the seeds.",
        "- Empty layers: layers without a trained weight, in the seed that has the most. With an offset, the kernel of "
        "such a layer is α·D alone. Without one it is zero, and the layer's output does not depend on its input."
        if has_empty
        else "",
        "- Checkpoints are counted before compression.",
        "- Inference is of an image, and a training step of a batch. Their operations are theoretical, in the prunable "
        "layers. Dense: with whole kernels. Sparse: of the trained weights and of the offset, which is a fast "
        "transform where that takes fewer; the sum can exceed the dense operations. Training steps of RigL include "
        "its gradients of whole kernels.",
        "- Images a second are measured, the median of all epochs.",
        f"- Computed in {', '.join(sorted(dtypes))}." if dtypes else "",
        f"- Not finished, and left out: {', '.join(unfinished)}." if unfinished else "",
        f"- The same setting and seed once more, and left out: {', '.join(record.name for record in again)}."
        if again
        else "",
    ]
    return "\n".join([*texts, "", *filter(None, notes), ""])


def as_csv(lines: Sequence[Line]) -> str:
    """Return the lines as CSV with all digits."""
    text = io.StringIO()
    rows = [
        {"method": line["method"], "offset": line["offset"]}
        | line["fields"]
        | {name: value for name, value in line.items() if name != "fields"}
        for line in lines
    ]
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_report(source: Path | str, output: Path | str) -> list[Path]:
    """Write all files of the report into the folder ``output``, which is created if it is missing; return them.

    Raises :class:`~dctps_jax.errors.UserError` if there are no finished runs, or the folder cannot be created.
    """
    source, output = Path(source), Path(output)
    records, again = first_of_each_seed(read_records(source))
    lines = summary(records)
    if not lines:
        raise UserError(f"{source} holds no finished run; a report is of finished ones")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"--output is {output}, which is, or lies below, a file; name a folder") from error
    texts = {"report.md": markdown(lines, records, again), "report.csv": as_csv(lines)}
    for name, text in texts.items():
        write_whole(output / name, text)
    write_records(output / "runs.jsonl", records)
    draw_accuracy(lines, output / "accuracy", title_of(record.config for record in records))
    files = [*(output / name for name in (*texts, "runs.jsonl")), *figure_files(output / "accuracy")]
    if begun := [record for record in records if record.rows and record.results is not None]:
        draw_curves(begun, output / "curves")
        files += figure_files(output / "curves")
    return files


def _accuracy(line: Line, name: str) -> str:
    mean, deviation = line[name], line[f"{name}_std"]
    if mean is None:
        return ""
    return f"{100 * mean:.2f} %" if line["seeds"] == 1 else f"{100 * mean:.2f} ± {100 * deviation:.2f} %"


def _percent(density: float | None) -> str:
    return "" if density is None else f"{100 * density:.3g} %"


def _scaled(number: float | None, unit: str) -> str:
    """Return a number with three digits and a prefix."""
    if number is None:
        return ""
    for prefix in ("", "k", "M", "G", "T"):
        if number < 999.5 or prefix == "T":
            break
        number /= 1000
    return f"{number:.3g} {prefix}{unit}".strip()


@command("report")
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="directory of runs, or a runs.jsonl")
    parser.add_argument("--output", type=Path, help="folder to write to; the directory of the runs if not given")
    arguments = parser.parse_args()
    source = arguments.source
    files = write_report(source, arguments.output or (source.parent if source.is_file() else source))
    print(f"written: {', '.join(map(str, files))}")


if __name__ == "__main__":
    main()
