"""The per-layer table: path, kernel shape, kept and all weights, density."""

from collections.abc import Mapping, Sequence

from dctps_jax.aligned import aligned


def layer_table(shapes: Mapping[str, Sequence[int]], counts: Mapping[str, int], sizes: Mapping[str, int]) -> str:
    """Return one aligned line a layer and a total; a layer that keeps nothing is marked.

    ``shapes`` are kernel shapes by dotted path, ``counts`` the kept and ``sizes`` all weights.
    """
    rows = [("layer", "kernel", "kept", "of", "density", "")]
    for path, shape in shapes.items():
        mark = "  no weight is trained here" if counts[path] == 0 else ""
        rows.append((path, "×".join(map(str, shape)), *_numbers(counts[path], sizes[path]), mark))
    rows.append(("total", "", *_numbers(sum(counts.values()), sum(sizes.values())), ""))
    columns = aligned([row[:5] for row in rows], left=2)
    lines = [line + row[5] for line, row in zip(columns, rows, strict=True)]
    lines.insert(len(lines) - 1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def _numbers(count: int, size: int) -> tuple[str, str, str]:
    return f"{count:,}", f"{size:,}", f"{100 * count / size:.4g} %"
