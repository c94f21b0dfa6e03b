"""The devices that a run trains on, and where its arrays live on them."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

from dctps_jax.distributed.placing import place, whole_on_host
from dctps_jax.ops import target
from dctps_jax.ops.compiler import compiler_options
from dctps_jax.training.state import AxisName, TrainState

# The axes of the mesh: each batch is divided along both, the arrays of a state only along the second.
DATA, SHARDS = "data", "shards"
# Arrays of a state with fewer numbers are whole on every device: collecting them costs more than the memory is worth.
LEAST_DIVIDED = 2**14


class Placement(NamedTuple):
    """Where arrays live: whole on every device, or split along the batch.

    With several shards the large arrays of a :class:`~dctps_jax.training.state.TrainState` are divided, too: each
    device keeps one part (Rajbhandari et al. 2020, "ZeRO", stage 3). See :func:`state_spec`.
    """

    replicated: NamedSharding
    batch: NamedSharding

    @property
    def axis_name(self) -> AxisName:
        """The axes of the mesh that a batch is divided along, or None if there is only one device."""
        if self.num_devices == 1:
            return None
        return DATA if self.shards == 1 else (DATA, SHARDS)

    @property
    def num_devices(self) -> int:
        return self.replicated.mesh.size

    @property
    def shards(self) -> int:
        """The number of parts that the large arrays of a state are divided into."""
        return self.replicated.mesh.shape.get(SHARDS, 1)

    @property
    def words(self) -> str:
        """The words in which a run describes its devices."""
        divided = f", the state divided into {self.shards} parts" if self.shards > 1 else ""
        return f"{self.num_devices} {self.platform} device(s){divided}"

    @property
    def platform(self) -> str:
        """The platform of the devices, which the programs of the run are traced and compiled for."""
        return next(iter(self.replicated.device_set)).platform

    @property
    def auto_dtype(self) -> str:
        """The type in which a run on these devices computes if its config leaves it open."""
        return target.auto_dtype(next(iter(self.replicated.device_set)))

    def shardings(self, tree: Any) -> Any:
        """Return where each array of ``tree`` lives: a state by :func:`state_spec`, other arrays on every device."""
        mesh = self.replicated.mesh

        def of_part(part: Any) -> Any:
            if isinstance(part, TrainState):
                return jax.tree.map(lambda leaf: NamedSharding(mesh, state_spec(leaf.shape, mesh)), part)
            return self.replicated

        return jax.tree.map(of_part, tree, is_leaf=lambda part: isinstance(part, TrainState))

    def compile(self, function: Callable[..., Any], arguments: tuple[Any, ...], donated: tuple[int, ...]) -> Any:
        """Compile ``function`` for the devices, which may be absent; its results are placed as by :meth:`put`.

        ``arguments`` may be abstract, as :meth:`abstract` makes them; ``donated`` are the numbers of donated arguments.
        """
        with target.tracing_for(self.platform):
            # Without shards all results are whole, and the function is traced once.
            results = self.replicated if self.shards == 1 else self.shardings(jax.eval_shape(function, *arguments))
            jitted = jax.jit(function, donate_argnums=donated, out_shardings=results)
            return jitted.lower(*arguments).compile(compiler_options())

    def abstract(self, tree: Any) -> Any:
        """Return shapes and dtypes of ``tree``, placed as by :meth:`put`."""
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree, self.shardings(tree)
        )

    def put(self, tree: Any) -> Any:
        """Place copies of ``tree`` where :meth:`shardings` says. Donating them leaves the caller's arrays alone."""
        return jax.tree.map(place, tree, self.shardings(tree))

    def for_files(self, state: TrainState) -> TrainState:
        """Return a state in its form for checkpoints: with whole arrays, on the host if there are shards.

        So no device has to hold a whole state. All processes call this.
        """
        return state if self.shards == 1 else jax.tree.map(whole_on_host, state)

    def abstract_for_files(self, state: TrainState) -> TrainState:
        """Return shapes and dtypes of a state placed as by :meth:`for_files`: on no device if there are shards."""
        if self.shards == 1:
            return self.abstract(state)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def state_spec(shape: tuple[int, ...], mesh: Any) -> PartitionSpec:
    """Return how an array of a training state is divided among the devices of a mesh.

    An array is divided along its largest dimension that is a multiple of the number of shards. It is whole on every
    device if there is no such dimension, below :data:`LEAST_DIVIDED` numbers, and with one dimension only: the values
    of compact layers, and biases. An optimiser's arrays for a kernel have the kernel's shape and are divided like the
    kernel.
    """
    shards = mesh.shape.get(SHARDS, 1)
    fitting = [number for number, size in enumerate(shape) if size % shards == 0]
    if shards == 1 or len(shape) < 2 or math.prod(shape) < LEAST_DIVIDED or not fitting:
        return PartitionSpec()
    largest = max(fitting, key=lambda number: shape[number])
    return PartitionSpec(*(None,) * largest, SHARDS)


def place_on_all_devices(shards: int = 1) -> Placement:
    """Return the placement for training over all devices of all hosts."""
    return place_on(target.training_devices(), shards)


def place_on(devices: Sequence[Any], shards: int = 1) -> Placement:
    """Return the placement for training over ``devices``: programs are traced and compiled for them.

    Each batch is divided among all devices, a state into ``shards`` parts. The number of devices is a multiple of that.
    """
    sizes = {DATA: len(devices)} if shards == 1 else {DATA: len(devices) // shards, SHARDS: shards}
    # Auto axes: with explicit axes, the gathers of the random crop would each need a sharding of their own.
    types = (jax.sharding.AxisType.Auto,) * len(sizes)
    mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=types, devices=devices)
    batch = PartitionSpec(DATA) if shards == 1 else PartitionSpec((DATA, SHARDS))
    return Placement(NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, batch))
