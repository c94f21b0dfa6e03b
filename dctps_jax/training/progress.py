"""Show how far a run is: a bar on a terminal, lines elsewhere. Only steps that the device has finished count."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

from tqdm import tqdm

from dctps_jax.training.step import Sums

BAR = "{desc} |{bar}| {n_fmt}/{total_fmt}{postfix}"
# Compiling takes about this long for each prunable layer: 1.4 s for ResNet50 on an H100, 2.4 s for VGG19.
COMPILE_SECONDS_PER_LAYER = 1.5
WORTH_SAYING_SECONDS = 10
SILENT_SECONDS = 5.0  # in which compiled programs are read from the cache
PATIENCE_SECONDS = 2.0


class Progress:
    """Shows the steps of each epoch: loss so far, speed, and the time left for the epoch and for the run.

    The time left is estimated from the steps of the current epoch, and from the time that the last epoch took after its
    last step, to validate and to save. On a terminal it is a bar. Elsewhere it is a line every ``log_every_steps``
    steps.
    """

    def __init__(self, num_epochs: int, steps_per_epoch: int, batch_size: int, log_every_steps: int):
        self.num_epochs, self.steps_per_epoch, self.batch_size = num_epochs, steps_per_epoch, batch_size
        self.log_every_steps = log_every_steps
        self._epoch, self._begin, self._first, self._last = 0, 0.0, 0, 0.0
        self._between, self._printed = 0.0, 0
        self._title, self._bar = "", None

    @contextlib.contextmanager
    def epoch(self, epoch: int, step: int) -> Iterator[None]:
        """Begin an epoch, counted from 0, at a step, or go on in its middle; close the bar when the block ends."""
        now = time.perf_counter()
        if self._last:
            self._between = now - self._last
        self._epoch, self._begin, self._first, self._printed = epoch, now, step, step
        self._title = f"epoch {epoch + 1}/{self.num_epochs}"
        self._bar = tqdm(
            total=self.steps_per_epoch,
            initial=step - epoch * self.steps_per_epoch,
            desc=self._title,
            leave=False,
            disable=not sys.stderr.isatty(),
            bar_format=BAR,
            dynamic_ncols=True,
        )
        try:
            yield
        finally:
            self._bar.close()

    def finished(self, step: int, sums: Sums) -> None:
        """Show that the device has finished all steps before ``step``, with the epoch's sums."""
        assert self._bar is not None
        self._last = time.perf_counter()
        position = step - self._epoch * self.steps_per_epoch
        seconds = (self._last - self._begin) / max(1, step - self._first)
        epoch_left = (self.steps_per_epoch - position) * seconds
        epochs_left = self.num_epochs - self._epoch - 1
        run_left = epoch_left + self._between + epochs_left * (self.steps_per_epoch * seconds + self._between)
        loss = float(sums.loss) * self.batch_size / int(sums.images)
        texts = (
            f"loss {loss:.4f}",
            f"{self.batch_size / seconds:,.0f} images/s",
            f"left: {duration(epoch_left)}, run {duration(run_left)}",
        )
        if not self._bar.disable:
            self._bar.n = position
            self._bar.set_postfix_str(", ".join(texts))
        elif step // self.log_every_steps > self._printed // self.log_every_steps and position < self.steps_per_epoch:
            self._printed = step
            print(f"{self._title}  step {position}/{self.steps_per_epoch}  {'  '.join(texts)}")

    def note(self, text: str) -> None:
        """Show on the bar what is done after the last step of an epoch."""
        if self._bar is not None and not self._bar.disable:
            self._bar.n = self.steps_per_epoch
            self._bar.set_postfix_str(text)


@contextlib.contextmanager
def doing(text: str) -> Iterator[None]:
    """Show a text on a terminal while the block runs."""
    with tqdm(bar_format="{desc}", desc=text, leave=False, disable=not sys.stderr.isatty()):
        yield


@contextlib.contextmanager
def announced(text: str, after: float | None = None) -> Iterator[None]:
    """Print a line if the block takes longer than ``after`` seconds, by default :data:`PATIENCE_SECONDS`."""
    timer = threading.Timer(PATIENCE_SECONDS if after is None else after, _print_beside_bars, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _print_beside_bars(text: str) -> None:
    tqdm.write(text)
    sys.stdout.flush()


@contextlib.contextmanager
def compiling(num_layers: int) -> Iterator[None]:
    """Print that the programs of a network are compiled, and how long that usually takes, unless it is quick.

    Programs that an earlier start compiled are read within :data:`SILENT_SECONDS`. Then nothing is printed.
    """
    seconds = COMPILE_SECONDS_PER_LAYER * num_layers
    if seconds < WORTH_SAYING_SECONDS:
        yield
        return
    minutes = max(1, round(seconds / 60))
    usual = duration(seconds) if seconds < 45 else f"{minutes} minute{'s' * (minutes > 1)}"
    with announced(f"compiling … (usually about {usual} the first time)", SILENT_SECONDS):
        yield


def duration(seconds: float) -> str:
    """Return a time span with a unit that fits it."""
    for unit, size, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 36)):
        if seconds < most * size:
            count = seconds / size
            return f"{count:.1f} {unit}" if unit == "h" and count < 10 else f"{count:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"
