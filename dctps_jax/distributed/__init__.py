"""Several processes that train one network together: how they start, agree, and leave together.

- :mod:`~dctps_jax.distributed.start` joins them to JAX's distributed runtime,
- :mod:`~dctps_jax.distributed.agreement` sends values of the first process to all, and compares the values of all,
- :mod:`~dctps_jax.distributed.watch` ends a process when another one of them has ended or does not answer any more,
- :mod:`~dctps_jax.distributed.exit_timeout` bounds how long a process waits for the others when it ends,
- :mod:`~dctps_jax.distributed.process_group` is the context manager that uses all of these.

With one process everything here does nothing.
"""
