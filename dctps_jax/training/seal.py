"""Digests in ``results.json``, which tell whether one of a finished run's small files was changed afterwards.

The field ``digests`` has a SHA-256 of the config, of the rows of the metrics, of the last masks, and of the results without
that field. Runs of version 0.1.0 have none; their files are taken as they are.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FIELD = "digests"
FILES = {"config": "config.json", "metrics": "metrics.jsonl", "masks": "masks.npz"}


def json_digest(value: Any) -> str:
    """Return a SHA-256 of what JSON can hold; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def masks_digest(masks: Mapping[str, np.ndarray]) -> str:
    """Return a SHA-256 of masks by path."""
    return json_digest({path: [mask.shape, np.packbits(mask).tobytes().hex()] for path, mask in masks.items()})


def sealed(
    results: Mapping[str, Any],
    config: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    masks: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Return the results of a run with the digests of its files."""
    digests = {
        "config": json_digest(config),
        "metrics": json_digest(rows),
        "masks": masks_digest(masks),
        "results": json_digest(results),
    }
    return {**results, FIELD: digests}


def check_digest(results: Mapping[str, Any] | None, name: str, found: str) -> None:
    """Raise ``ValueError`` where the digest of one of :data:`FILES` is not the one in the results, if there is one."""
    if results is not None and results.get(FIELD, {}).get(name, found) != found:
        raise ValueError(f"{FILES[name]} was changed or lost after the run: its digest in results.json is another one")


def check_own_digest(results: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` where the results themselves were changed."""
    own = json_digest({name: value for name, value in results.items() if name != FIELD})
    if results.get(FIELD, {}).get("results", own) != own:
        raise ValueError("its digest does not match its content")
