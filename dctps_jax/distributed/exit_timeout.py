"""Bound how long a process waits for the others after its run, when it ends.

At its end JAX 0.10.2 waits for all processes, for minutes if one was killed after the run had ended
(tests/distributed/test_exit_timeout.py).
"""

import atexit
import contextlib
import os
import sys
import threading
import time

import jax

# The longest that JAX may wait for the others.
LEAVE_SECONDS = 10.0
# The exit code of the process; it is not 0 if all processes have left for one reason.
exit_code = 0


def bound() -> None:
    """Let a process that ends wait for the others for :data:`LEAVE_SECONDS` at most."""
    is_ending = threading.Event()
    # Python cannot start a thread any more while it ends.
    threading.Thread(target=_go_alone, args=(is_ending,), name="goodbye", daemon=True).start()
    # Called before JAX's own handler, which waits.
    atexit.register(is_ending.set)


def _go_alone(is_ending: threading.Event) -> None:
    is_ending.wait()
    until = time.monotonic() + LEAVE_SECONDS
    while jax.distributed.is_initialized():
        if time.monotonic() > until:
            end_at_once(exit_code)
        time.sleep(0.05)


def end_at_once(code: int) -> None:
    """End the process without JAX's wait for the others."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
