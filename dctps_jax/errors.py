"""The exceptions that stand for a mistake the user can mend."""

import contextlib
import shutil
from pathlib import Path


class UserError(ValueError):
    """A mistake in what the user gave: a config value, a file, a shape.

    The message is one sentence that names the field or file, what was found, what is allowed and what to do. The
    command line programs print it without a traceback and exit with its code.
    """

    exit_code = 2


class DiskFull(UserError):
    """A file that the disk, or the user's quota, has no room for."""

    exit_code = 74

    def __init__(self, path: Path, needed: int | None = None):
        """``needed`` are the bytes of the file, where they are known."""
        folder = path.absolute().parent
        size = "" if needed is None else f" ({needed:,} bytes)"
        room = ""
        with contextlib.suppress(OSError):
            room = f" {shutil.disk_usage(folder).free:,} bytes are free there."
        super().__init__(
            f"{folder} has no room for {path.name}{size}: the disk or the quota is full.{room} Make room or choose "
            "another folder, and give the same command again"
        )
