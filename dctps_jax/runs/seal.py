"""The digests in ``results.json``. They reveal damaged files of a finished run, and files of another run.

The field ``digests`` has a SHA-256 for each of:

- ``config``: the config fields that identify the run, see :func:`~dctps_jax.runs.workdir.identity`;
- ``metrics.jsonl``: its rows; ``masks.npz``: its masks. A summary of several seeds has neither;
- ``results.json``: all of its fields, and the digests above.

Results of version 0.1.0 have no digests. They pass the checks.
"""

from collections.abc import Mapping
from typing import Any

from dctps_jax.files import digest_of
from dctps_jax.runs.checkpoint_files import NO_MATCH

FIELD, RESULTS = "digests", "results.json"


def sealed(results: Mapping[str, Any], digests: Mapping[str, str]) -> dict[str, Any]:
    """Return results with the digests of the run's other files, and with their own digest."""
    with_digests = {**results, FIELD: dict(digests)}
    return {**results, FIELD: {**digests, RESULTS: digest_of(with_digests)}}


def check_seal(results: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if results are not as they were written."""
    if FIELD not in results:
        return
    digests = results[FIELD]
    if not isinstance(digests, dict):
        raise ValueError(f"{FIELD} is no JSON object")
    others = {name: digest for name, digest in digests.items() if name != RESULTS}
    if digest_of({**results, FIELD: others}) != digests.get(RESULTS):
        raise ValueError(NO_MATCH)


def is_sealed_as(results: Mapping[str, Any], name: str, digest: str) -> bool:
    """Return whether results say that ``name`` has this digest. Results without digests agree with any."""
    return results.get(FIELD, {}).get(name, digest) == digest
