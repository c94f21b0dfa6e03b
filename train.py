"""Train, evaluate and report one network: ``python train.py --config configs/NAME.py --workdir DIR``.

Every field of the config can be set on the command line: ``--config.pruning.density=0.001``.
"""

import os
import signal

if __name__ == "__main__":
    # Importing JAX takes seconds. Until the run listens itself, a signal ends the process with one line.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: (os.write(2, b"train.py: stopped\n"), os._exit(128 + number)))

    from dctps_jax.cli.train import main

    main()
