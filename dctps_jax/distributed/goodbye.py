"""Bound how long a process waits for the others after its run, when it ends.

JAX 0.10.2 then waits for all processes, for minutes where one was killed after the run had ended
(tests/distributed/test_goodbye.py).
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
# The code that a process ends with; another one than 0 where all have left for one reason.
exit_code = 0


def bound() -> None:
    """Have a process that ends go without the others, once it has waited for :data:`LEAVE_SECONDS`."""
    is_ending = threading.Event()
    # No thread can be started any more when Python ends.
    threading.Thread(target=_go_alone, args=(is_ending,), name="goodbye", daemon=True).start()
    # Called before what JAX has registered, which waits.
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
