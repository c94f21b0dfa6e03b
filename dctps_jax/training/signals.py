"""What ends a run early: Ctrl-C and SIGTERM, lack of memory in a thread, a loss that is not finite."""

import contextlib
import mmap
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Iterator
from types import FrameType
from typing import Any

from dctps_jax.command import end_process, say
from dctps_jax.errors import OUT_OF_MEMORY

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A third signal ends the process at once.
PATIENCE = 3
# This much memory is kept free to report that memory ran out.
RESERVED_BYTES = 2**24


class Stopped(Exception):
    """A run that saved its state and ended because of a signal; the same command resumes it.

    All processes of a run end in this way at the same step.
    """

    is_agreed = True

    def __init__(self, signal_number: int, step: int):
        self.exit_code = 128 + signal_number
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name}; saved at step {step}; the same command goes on from there")


class NonFiniteLoss(Exception):
    """A run whose loss or weights became infinite or not a number; earlier checkpoints are kept."""

    exit_code = 3

    def __init__(self, step: int, what: str = "the loss is", rate: float | None = None):
        self.step, self.what = step, what
        advice = "a smaller config.optimizer.learning_rate usually helps"
        if rate is not None:
            advice = f"start again in another directory with a smaller rate: --config.optimizer.learning_rate={rate:g}"
        super().__init__(f"{what} not finite at step {step}; checkpoints from before are kept; {advice}")


@contextlib.contextmanager
def suggest_rate(learning_rate: float, steps_per_epoch: int) -> Iterator[None]:
    """Make a :class:`NonFiniteLoss` of the first epoch suggest a tenth of the learning rate."""
    try:
        yield
    except NonFiniteLoss as error:
        if error.step > steps_per_epoch:
            raise
        raise NonFiniteLoss(error.step, error.what, learning_rate / 10) from None


class StopSignals:
    """What SIGINT and SIGTERM do.

    While the network trains, inside :meth:`saving`, the first signal asks the loop to save and leave; the loop reads
    :attr:`number`. The second signal prints a message. The third one ends the process at once.

    Before and after, the process ends at once with one line. Nothing is lost: there is nothing to save yet, or
    everything is saved. ``KeyboardInterrupt`` would not work: it waits for the compiler, is lost if it meets a callback
    of the garbage collector, and unwinds the process while threads of the compiler still run, which crashes it.

    With ``ends_process=False``, as in a notebook, ``KeyboardInterrupt`` is raised instead of ending the process.
    """

    def __init__(self, ends_process: bool):
        self.number: int | None = None
        self.saved_step = 0
        self._ends_process = ends_process
        self._is_saving = False
        self._count = 0

    @contextlib.contextmanager
    def saving(self, step: int) -> Iterator[None]:
        """Inside, a signal asks the loop to save; ``step`` is the newest saved step."""
        self.saved_step, self._is_saving = step, True
        try:
            yield
        finally:
            self._is_saving = False

    def answer(self, signal_number: int) -> None:
        """Act on a signal, at once, in a thread of its own: the main thread may wait for the compiler or the device."""
        self._count += 1
        name = signal.Signals(signal_number).name
        if not self._is_saving:
            if self._ends_process:
                end_process(128 + signal_number, f"stopped by {name}; the same command starts again")
        elif self._count < PATIENCE:
            say(
                f"{name}: the step under way ends and is saved, then the run stops; "
                f"{PATIENCE - self._count} more to stop at once and lose the steps after step {self.saved_step}"
            )
        elif self._ends_process:
            end_process(
                128 + signal_number, f"stopped at once by {name}; the steps after step {self.saved_step} are lost"
            )

    def handle(self, signal_number: int, frame: FrameType | None) -> None:
        """Act on a signal in the main thread, as soon as that runs Python again."""
        if self._is_saving and self.number is None:
            self.number = signal_number
        elif not self._ends_process and (not self._is_saving or self._count >= PATIENCE):
            raise KeyboardInterrupt


def end_without_memory(signals: StopSignals, failures: deque[Any]) -> None:
    """End the process if memory ran out where no exception can be raised, such as at the start of a thread.

    ``failures`` are the values that Python passes to ``sys.unraisablehook``. Orbax would wait forever for a thread that
    could not start. The checkpoints on the disk stay as they are.
    """
    while failures:
        failure = failures.popleft()
        if issubclass(failure.exc_type, MemoryError):
            step = signals.saved_step
            end_process(
                OUT_OF_MEMORY,
                f"out of memory; what is saved, step {step}, is kept; the same command goes on from there",
            )
        sys.__unraisablehook__(failure)


@contextlib.contextmanager
def listen_for_signals(ends_process: bool = False) -> Iterator[StopSignals]:
    """Answer SIGINT and SIGTERM until the block ends. Only the main thread of a process can listen.

    ``ends_process`` is for command line programs: a signal may then end the process if there is nothing to save.
    """
    signals = StopSignals(ends_process)
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    reader.settimeout(1)
    failures: deque[Any] = deque()
    reserve = mmap.mmap(-1, RESERVED_BYTES)

    def watch() -> None:
        while True:
            try:
                number = reader.recv(1)[0]
                if number == 0:
                    return
                if number in SIGNALS:
                    signals.answer(number)
            except TimeoutError:
                if failures and ends_process:
                    reserve.close()
                    end_without_memory(signals, failures)

    # Python runs a handler only when the main thread is back from the compiler. But it writes the signal's number at
    # once.
    watcher = threading.Thread(target=watch, name="signals", daemon=True)
    watcher.start()
    previous_descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    previous = {number: signal.signal(number, signals.handle) for number in SIGNALS}
    previous_hook = sys.unraisablehook
    if ends_process:
        # A method in C needs no memory of its own: without memory, a function in Python could not be called any more.
        sys.unraisablehook = failures.append
    try:
        yield signals
    finally:
        sys.unraisablehook = previous_hook
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(previous_descriptor)
        writer.send(b"\0")
        watcher.join()
        reader.close()
        writer.close()
        reserve.close()
