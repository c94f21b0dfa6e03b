"""A part of a checkpoint that Orbax writes as one file, as it is."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp


class OneFileHandler(ocp.AsyncCheckpointHandler):
    """Has Orbax write a file as it is.

    Orbax's own handlers would write arrays as an OCDBT database. orbax-checkpoint 0.12.8 looks for the database's parts
    by ``glob.glob`` over the whole path, so brackets in the name of a directory lose them. Only the texts of
    TensorStore's errors tell a full disk or a missing permission. The file is written before ``async_save`` returns,
    since Orbax logs an error in a thread with a traceback.
    """

    async def async_save(self, directory: Any, args: "OneFile") -> None:
        with Path(directory, args.name).open("wb") as file:
            file.write(args.content)
            file.flush()
            os.fsync(file.fileno())

    def save(self, directory: Any, args: "OneFile") -> None:
        raise NotImplementedError("Orbax calls async_save of an AsyncCheckpointHandler")

    def restore(self, directory: Any, args: "OneFile") -> bytes:
        return Path(directory, args.name).read_bytes()


@ocp.args.register_with_handler(OneFileHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class OneFile(ocp.args.CheckpointArgs):
    """The name of a file in its part of a checkpoint, and what to write to it."""

    name: str
    content: bytes = dataclasses.field(default=b"", repr=False)
