"""The fixed numbers of a run that its programs are compiled for, and how many steps each call takes."""

from collections.abc import Iterator
from typing import NamedTuple

from dctps_jax.data.batches import Normalization
from dctps_jax.data.regularization import Regularization
from dctps_jax.pruning.dynamic import UpdateSchedule

# The smallest normal float16 is 6e-5, and the gradients of the mean loss get smaller as the batch gets larger. With
# this factor most of them are normal numbers. A gradient of the logits, at most 1 / batch_size without the factor,
# stays far below the largest float16, 65,504. The range of bfloat16 is that of float32.
LOSS_SCALES = {"float16": 1024.0}


# A call gets at most this many bytes of images that are not on the device already.
MOST_WINDOW_BYTES = 256 * 10**6


class StepSpec(NamedTuple):
    """The fixed numbers of a run that its programs are compiled for."""

    batch_size: int
    eval_batch_size: int
    steps_per_epoch: int
    steps_per_dispatch: int
    normalization: Normalization
    augmented: bool
    seed: int
    sparse_training: str = "static"
    updates: UpdateSchedule | None = None
    regularization: Regularization = Regularization()
    ema_decay: float = 0.0
    only_flips: bool = False
    loss_scale: float = 1.0

    @property
    def longest_dispatch(self) -> int:
        """The most steps that one call takes. No call goes beyond the end of an epoch."""
        return min(self.steps_per_dispatch, self.steps_per_epoch)


def default_steps_per_dispatch(platform: str, window_bytes: int = 0) -> int:
    """Return how many steps one call to a device of ``platform`` takes if the config leaves it open.

    ``window_bytes`` are the bytes that a call needs for each of its steps. Those of all steps are at most 256 MB.

    XLA's CPU backend (JAX 0.10.2) compiles the body of a loop worse than a program of its own, see
    https://github.com/jax-ml/jax/issues/12868, and a call costs little compared with a step. ``benchmarks/train_step.py
    --steps_per_dispatch`` times both.
    """
    if platform == "cpu":
        return 1
    return 50 if window_bytes == 0 else max(1, min(50, MOST_WINDOW_BYTES // window_bytes))


def dispatches(step: int, spec: StepSpec) -> Iterator[tuple[int, bool]]:
    """Yield (steps, whether it is a mask update) for the dispatches from ``step`` to the end of its epoch.

    It depends on the step only, so that a resumed run calls the same programs as a run that was never stopped.
    """
    length = spec.longest_dispatch
    position = step % spec.steps_per_epoch
    first = step - position
    while position < spec.steps_per_epoch:
        updates = [spec.updates is not None and spec.updates.is_update(first + position + n) for n in range(length)]
        whole = position % length == 0 and position + length <= spec.steps_per_epoch and not any(updates)
        taken = length if whole else 1
        yield taken, updates[0]
        position += taken
