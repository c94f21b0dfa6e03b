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
        "Above 1: train with `seed`, `seed + 1`, …, each in a directory, and report mean and deviation.",
        allowed=at_least(1),
        grows=True,
    ),
    "batch_size": Field(128, "Images in a training step, over all devices.", allowed=at_least(1)),
    "eval_batch_size": Field(256, "Images in an evaluation step, over all devices.", allowed=at_least(1)),
    "num_epochs": Field(200, "Passes over the training images.", allowed=at_least(1), grows=True),
    "steps_per_dispatch": Field(
        0,
        "Training steps in one call to the device; 0: 1 on a CPU, 50 elsewhere, or fewer if the images of 50 steps "
        "are streamed and exceed 256 MB.",
        allowed=at_least(1, zero="to choose by platform"),
    ),
    "log_every_steps": Field(
        50,
        "Check the loss after this many steps, rounded up to whole dispatches, and at the end of each epoch. Print it "
        "as well if there is no terminal.",
        allowed=at_least(1),
        resume=True,
    ),
    "checkpoint_every_steps": Field(
        0,
        "Write a checkpoint after this many steps, and at the end of each epoch.",
        allowed=at_least(1, zero="for the end of each epoch only"),
    ),
    "keep_epochs": Field(
        (),
        "Keep the checkpoints of these epochs, for `pruning.rewind_epoch` of other runs.",
        allowed=Allowed(are_epochs, "whole epochs of at least 1 in increasing order, e.g. (2,)"),
        added=True,
        resume=True,
    ),
    "tensorboard": Field(True, "Also write the metrics for TensorBoard, if tensorboardX is installed.", resume=True),
    "wandb": Field(
        "off",
        "Also write the metrics for Weights & Biases: keep them in the run's directory, or send them.",
        choices=("off", "offline", "online"),
        added=True,
        resume=True,
    ),
    "trackio": Field(
        False,
        "Also write the metrics for Trackio, into the run's directory (of several seeds: the first one's).",
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
        "The number of this process, from 0 on.",
        allowed=at_least(-1),
        added=True,
        resume=True,
    ),
    "distributed.shards": Field(
        1,
        "Divide the large arrays of the weights and of the optimiser into this many parts among the devices, for "
        "networks that one device cannot hold. The number of devices must be a multiple of it.",
        allowed=at_least(1),
        added=True,
        resume=True,
    ),
}
