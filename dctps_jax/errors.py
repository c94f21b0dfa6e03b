"""The one exception that stands for a mistake the user can mend."""


class UserError(ValueError):
    """A mistake in what the user gave: a config value, a file, a shape.

    The message is one sentence that names the field or file, what was found, what is allowed and what to do. The
    command line programs print it without a traceback and exit with its code.
    """

    exit_code = 2
