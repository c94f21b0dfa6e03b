"""Train every combination of values.

    python sweep.py --config configs/NAME.py --sweep configs/sweeps/NAME.py --workdir DIR

A directory and a process for each run; finished runs are skipped, so that the same command goes on after Ctrl-C, a kill
or failures. It may run several times at once. Other fields of the config are set for all runs:
``--config.num_epochs=15``.
"""

from dctps_jax.cli.sweep import main

if __name__ == "__main__":
    main()
