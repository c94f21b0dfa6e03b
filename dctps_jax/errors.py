"""The one exception that stands for a mistake the user can mend."""

import errno


class UserError(ValueError):
    """A mistake in what the user gave: a config value, a file, a shape.

    The message is one sentence that names the field or file, what was found, what is allowed and what to do. The
    command line programs print it without a traceback and exit with its code.
    """

    exit_code = 2


class DiskFull(UserError):
    """A file that cannot be written for want of room: on the disk, in a quota, or below a limit on the size of files."""

    exit_code = 74

    @staticmethod
    def is_reason(error: OSError) -> bool:
        """Return whether this is why a system call failed."""
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
