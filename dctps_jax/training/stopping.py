"""What ends a run early: a signal, or a loss that is not finite."""

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from types import FrameType


class Stopped(Exception):
    """A run that saved its state and left because of a signal; the same command goes on from there."""

    def __init__(self, signal_number: int, step: int):
        self.exit_code = 128 + signal_number
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name}; saved at step {step}; the same command goes on from there")


class NonFiniteLoss(Exception):
    """A run whose loss or weights were infinite or not a number; what was saved before is kept."""

    exit_code = 3

    def __init__(self, step: int, what: str = "the loss is", seeds: Sequence[int] = ()):
        """``seeds`` are those that it happened to, where several train side by side."""
        whose = f" with seed {', '.join(map(str, seeds))}" if seeds else ""
        others = "; config.parallel_seeds=False trains the other seeds" if seeds else ""
        super().__init__(
            f"{what} not finite at step {step}{whose}; checkpoints from before are kept, and a smaller "
            f"config.optimizer.learning_rate usually helps{others}"
        )


class StopRequest:
    """Which signal asked the run to stop, if any."""

    signal_number: int | None = None


@contextlib.contextmanager
def listen_for_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM and Ctrl-C into a request that the loop sees between steps; a second one ends the process at once."""
    request = StopRequest()

    def handle(signal_number: int, frame: FrameType | None) -> None:
        if request.signal_number is not None:
            os._exit(128 + signal_number)
        request.signal_number = signal_number

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
