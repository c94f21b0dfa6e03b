"""The fields of a run as a whole: seeds, batches, epochs, what is recorded, and several processes."""

from dctps_jax.field import Allowed, Field, at_least
from dctps_jax.fields.values import are_epochs, is_coordinator

RUN: dict[str, Field] = {
    "seed": Field(
        0,
        "All random numbers of the run come from it.",
        allowed=Allowed(lambda value: 0 <= value < 2**32, "a whole number from 0 to 2^32 - 1"),
    ),
    "num_seeds": Field(
        1,
        "Above 1: runs with `seed`, `seed + 1`, … in a directory each, and their mean and deviation.",
        allowed=at_least(1),
        grows=True,
    ),
    "batch_size": Field(128, "Images in a training step, over all devices.", allowed=at_least(1)),
    "eval_batch_size": Field(256, "Images in an evaluation step, over all devices.", allowed=at_least(1)),
    "num_epochs": Field(200, "Passes over the training images.", allowed=at_least(1), grows=True),
    "steps_per_dispatch": Field(
        0,
        "Training steps in one call to the device; 0: 1 on a CPU, 50 elsewhere, or fewer where the images of 50 steps "
        "are streamed and exceed 256 MB.",
        allowed=at_least(1, zero="to choose by platform"),
    ),
    "log_every_steps": Field(
        50,
        "The loss is checked, and printed where there is no terminal, after so many steps, rounded up to whole "
        "dispatches, and at the end of each epoch.",
        allowed=at_least(1),
        resume=True,
    ),
    "checkpoint_every_steps": Field(
        0,
        "A checkpoint is written after so many steps, and at the end of each epoch.",
        allowed=at_least(1, zero="for the end of each epoch only"),
    ),
    "keep_epochs": Field(
        (),
        "Checkpoints of these epochs are kept, for `pruning.rewind_epoch` of other runs.",
        allowed=Allowed(are_epochs, "whole epochs of at least 1 in increasing order, e.g. (2,)"),
        added=True,
        resume=True,
    ),
    "tensorboard": Field(True, "Write the metrics for TensorBoard, too, if tensorboardX is installed.", resume=True),
    "wandb": Field(
        "off",
        "Write the metrics for Weights & Biases, too: kept in the run's directory, or sent.",
        choices=("off", "offline", "online"),
        added=True,
        resume=True,
    ),
    "trackio": Field(
        False,
        "Write the metrics for Trackio, too: kept in the run's directory, that of the first of several seeds.",
        added=True,
        resume=True,
    ),
    # Several processes, see docs/several_hosts.md.
    "distributed.coordinator": Field(
        "",
        "With several processes: the `host:port` at which process 0 listens, or `auto` to have JAX find the processes "
        "of a TPU pod, Slurm, Open MPI or Kubernetes. All need the same `--workdir`.",
        allowed=Allowed(is_coordinator, "host:port with a port up to 65535, 'auto', or '' for one process"),
        added=True,
        resume=True,
    ),
    "distributed.num_processes": Field(
        0,
        "How many processes there are, with a `host:port`.",
        allowed=at_least(1, zero="where they are detected"),
        added=True,
        resume=True,
    ),
    "distributed.process_id": Field(
        -1,
        "Which of them this process is, from 0 on.",
        allowed=at_least(-1),
        added=True,
        resume=True,
    ),
    "distributed.shards": Field(
        1,
        "Into how many parts large arrays of the weights and of the optimiser are divided among the devices, for "
        "networks that one device cannot hold. The number of devices must be a multiple of it.",
        allowed=at_least(1),
        added=True,
        resume=True,
    ),
}
