"""Call a program in this process as the shell would: arguments in, exit code and both outputs back."""

import contextlib
import io
import logging
import os
import sys
import warnings
from typing import NamedTuple
from unittest import mock

from absl import logging as absl_logging


class Done(NamedTuple):
    code: int | str
    out: str
    err: str


def call(main, *arguments):
    """Run `main` with these arguments; what it prints is read back as a terminal in UTF-8 would."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with _as_program(arguments), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = _exit_code(main)
    return Done(code, out.buffer.getvalue().decode(), err.buffer.getvalue().decode())


def call_into_closed_pipe(main, *arguments):
    """Run `main` with an output whose reader is gone, as in `… | head`."""
    reader, writer = os.pipe()
    os.close(reader)
    err = io.StringIO()
    with (
        open(writer, "w") as out,
        _as_program(arguments),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = _exit_code(main)
    return Done(code, "", err.getvalue())


def assert_one_sentence(done, program, *parts, code=2):
    """The program printed one line on stderr, which holds `parts`, and nothing else."""
    assert done.code == code, done
    assert done.out == "" and done.err.startswith(f"{program}: ") and done.err.count("\n") == 1, done
    assert "Traceback" not in done.err
    for part in parts:
        assert part in done.err, (part, done.err)


@contextlib.contextmanager
def _as_program(arguments):
    argv, root = ["program", *map(str, arguments)], logging.getLogger()
    level, verbosity = root.level, absl_logging.get_verbosity()
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(sys, "unraisablehook", sys.unraisablehook),
        warnings.catch_warnings(),
    ):
        try:
            yield
        finally:
            absl_logging.set_verbosity(verbosity)
            root.setLevel(level)


def _exit_code(main):
    try:
        main()
    except SystemExit as end:
        return end.code or 0
    return 0
