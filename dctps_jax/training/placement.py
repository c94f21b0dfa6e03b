"""The devices that a run trains on, and where its arrays live on them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

from dctps_jax.distributed.placing import place_whole
from dctps_jax.ops import target
from dctps_jax.ops.compiler import compiler_options


class Placement(NamedTuple):
    """Where arrays live: whole on every device, or split along the batch."""

    replicated: NamedSharding
    batch: NamedSharding

    @property
    def axis_name(self) -> str | None:
        """The axis of the mesh, or None where there is one device only."""
        mesh = self.replicated.mesh
        return mesh.axis_names[0] if mesh.size > 1 else None

    @property
    def num_devices(self) -> int:
        return self.replicated.mesh.size

    @property
    def platform(self) -> str:
        """The platform of the devices, which the programs of the run are traced and compiled for."""
        return next(iter(self.replicated.device_set)).platform

    @property
    def auto_dtype(self) -> str:
        """The type that a run on the devices computes in where its config leaves it open."""
        return target.auto_dtype(next(iter(self.replicated.device_set)))

    def compile(self, function: Callable[..., Any], arguments: tuple[Any, ...], donated: tuple[int, ...]) -> Any:
        """Compile ``function`` for the devices; its results are whole on each. Devices need not be at hand for it.

        ``arguments`` may be abstract, as :meth:`abstract` makes them; ``donated`` are the numbers of those given away.
        """
        with target.tracing_for(self.platform):
            jitted = jax.jit(function, donate_argnums=donated, out_shardings=self.replicated)
            return jitted.lower(*arguments).compile(compiler_options())

    def abstract(self, tree: Any) -> Any:
        """Return shapes and dtypes of ``tree``, whole on every device."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.replicated), tree)

    def put(self, tree: Any) -> Any:
        """Place copies of ``tree`` whole on every device: no array of the caller is given away with them."""
        return jax.tree.map(lambda leaf: place_whole(leaf, self.replicated), tree)


def place_on_all_devices() -> Placement:
    """Return the placement for data-parallel training over all devices of all hosts."""
    return place_on(target.training_devices())


def place_on(devices: Sequence[Any]) -> Placement:
    """Return the placement for data-parallel training over ``devices``: what programs are traced and compiled for."""
    # Auto axes: with explicit ones, the gathers of the random crop would each need a sharding of their own.
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)
    return Placement(NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data")))
