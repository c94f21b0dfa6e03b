"""Read checkpoints of format 2 (version 0.1.0), as Orbax wrote them: zarr arrays in an OCDBT database."""

from collections.abc import Mapping

import numpy as np

from dctps_jax.runs.packing import unpack

# If the path of a work directory has brackets, Orbax leaves the database in the folder of its process.
ROOTS = ("", "ocdbt.process_0/")


def read_arrays(files: Mapping[str, bytes]) -> dict[str, np.ndarray]:
    """Return the arrays of a checkpoint whose ``files`` are given by name.

    Damaged files raise any error of TensorStore.

    TensorStore reads them from memory. If it opened them itself, its errors would not tell a missing permission from a
    damaged file.
    """
    import tensorstore

    context = tensorstore.Context()
    memory = tensorstore.KvStore.open({"driver": "memory"}, context=context).result()
    for name, content in files.items():
        memory.write(name, content).result()
    root = next((root for root in ROOTS if f"{root}manifest.ocdbt" in files), "")
    database = {"driver": "ocdbt", "base": {"driver": "memory", "path": root}}
    store = tensorstore.KvStore.open(database, context=context).result()
    names = {key.decode().split("/")[0] for key in store.list().result()}

    def read(name: str) -> np.ndarray:
        spec = {"driver": "zarr", "kvstore": {**database, "path": f"{name}/"}}
        return tensorstore.open(spec, open=True, read=True, context=context).result().read().result()

    return unpack({name: read(name) for name in names})
