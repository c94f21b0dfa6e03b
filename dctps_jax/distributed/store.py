"""Texts that all processes share: the key-value store of JAX's distributed runtime, which lives in process 0.

JAX has no public name for its client (0.10.2). If process 0 does not answer, calls wait forever;
:mod:`dctps_jax.distributed.watch` then ends the process that waits.
"""

from typing import Any

import jax
from jax._src import distributed

PREFIX = "dctps_jax"
WAIT_MILLISECONDS = 60_000


def write(key: str, text: str) -> None:
    _client().key_value_set(f"{PREFIX}/{key}", text, allow_overwrite=True)


def read_all(folder: str) -> dict[str, str]:
    """Return the texts whose keys begin with ``folder/``, by the rest of the key."""
    found = _client().key_value_dir_get(f"{PREFIX}/{folder}/")
    return {key.rpartition("/")[2]: text for key, text in found}


def wait_for(key: str) -> str:
    """Return a text as soon as a process has written it."""
    while True:
        try:
            return _client().blocking_key_value_get(f"{PREFIX}/{key}", WAIT_MILLISECONDS)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def _client() -> Any:
    return distributed.global_state.client
