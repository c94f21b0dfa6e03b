"""The exceptions for mistakes that the user can correct."""

import contextlib
import difflib
import errno
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path


class UserError(ValueError):
    """A mistake in what the user gave: a config value, a file, a shape.

    The message is one sentence that names the field or file, what was found, what is allowed and what to do. The
    command line programs print it without a traceback and exit with its code.
    """

    exit_code = 2


def did_you_mean(name: object, names: Iterable[str]) -> str:
    """Return the closest of ``names`` in brackets, to add to a message about an unknown name, or ""."""
    text, names = str(name), list(names)
    close = difflib.get_close_matches(text, names, n=1) or difflib.get_close_matches(text.lower(), names, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its kind if it has no text.

    It is cut after 200 characters: errors of zipfile hold pieces of a damaged file.
    """
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return line if len(line) <= 200 else f"{line[:200]} …"


def some_of(items: Sequence[str], most: int, separator: str = ", ") -> str:
    """Return the first ``most`` of some texts in one, and how many more there are."""
    more = [f"and {len(items) - most} more"] if len(items) > most else []
    return separator.join([*items[:most], *more])


# The exit code of a process that ran out of memory, threads or file handles.
OUT_OF_MEMORY = 71

# Error numbers for too many open files: in the process, or in the whole system.
SPENT_HANDLES = (errno.EMFILE, errno.ENFILE)


class DiskFull(UserError):
    """No room to write a file: the disk or the quota is full, or the file is larger than the system allows."""

    exit_code = 74

    @classmethod
    def at(cls, path: Path, needed: int | None = None) -> "DiskFull":
        """Return the error for a file; ``needed`` are its bytes, where they are known."""
        folder = path.absolute().parent
        size = "" if needed is None else f" ({needed:,} bytes)"
        free = ""
        with contextlib.suppress(OSError):
            free = f" {shutil.disk_usage(folder).free:,} bytes are free there."
        return cls(
            f"{folder} has no room for {path.name}{size}: the disk or the quota is full.{free} Make room or choose "
            "another folder, and give the same command again"
        )

    @staticmethod
    def is_reason(error: OSError) -> bool:
        """Return whether this is why a system call failed."""
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
